#!/usr/bin/env bash
# Trains the auto-encoders of Zheng et al., "Understanding VAEs in Fisher-Shannon Plane" (2018), tables 1 and 2, one
# after the other, estimates their likelihoods by importance sampling, then makes the tables and the figure.
#   benchmarks/fisher_shannon.sh OUT_DIR [FIT_OPTION...]
# FIT_OPTIONs go to every `fisherkernels fit`, for example --trainer.max_epochs 20. A run that was interrupted continues
# from its last checkpoint when the script is started again; a finished one is skipped.
# DATA_ROOT: folder with MNIST/raw/ (data). MODELS: names of what to train: vae, mae-mM, and fae-fF-wW or
# reversed-fF-wW, F being f_z and W lambda_z, followed by -sum where tr J is not divided by d. SAMPLES: of the
# estimated likelihoods (200); 0 leaves them out. RESULTS: where tables and figure go
# (benchmarks/results/fisher_shannon). PYTHON: the interpreter.
set -euo pipefail
out=${1:?usage: benchmarks/fisher_shannon.sh OUT_DIR [FIT_OPTION...]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
data=$(realpath "${DATA_ROOT:-data}")
results=$(realpath -m "${RESULTS:-$(dirname "$0")/results/fisher_shannon}")
python=${PYTHON:-python3}
samples=${SAMPLES:-200}
cd "$(dirname "$0")/.."
binarized="vae mae-m0 mae-m10 fae-f0-w0.1 fae-f0-w1 fae-f0-w10 fae-f20-w0.1 fae-f20-w1 fae-f20-w10"
reversed="reversed-f0.1-w1 reversed-f5-w1 reversed-f10-w1 reversed-f20-w1"

options_of() { # the config and the options of a name
    local kind value weight sum
    IFS=- read -r kind value weight sum <<<"$1"
    case $kind in
        vae) echo --config configs/vae_binarized_mnist.yaml ;;
        mae) echo --config configs/mutual_ae_mnist.yaml --model.information "${value#m}" ;;
        fae) echo --config configs/fisher_shannon_mnist.yaml ;;
        reversed) echo --config configs/fisher_shannon_reversed_mnist.yaml ;;
        *) echo "MODELS: expected vae, mae-mM, fae-fF-wW or reversed-fF-wW, received $1" >&2; return 1 ;;
    esac
    [[ $kind == fae || $kind == reversed ]] && echo --model.f_z "${value#f}" --model.lambda_z "${weight#w}"
    [[ ${sum:-} == sum ]] && echo --model.per_dimension false
    true
}

for model in ${MODELS:-$binarized $reversed}; do
    run=$out/$model
    named=$(options_of "$model")
    read -r -d '' -a options <<<"$named" || true
    options+=(--data.root "$data" --trainer.default_root_dir "$run" "$@")
    if [[ -f $run/finished && $(<"$run/finished") == "$*" ]]; then
        echo "$model: finished before"
    else
        [[ -f $run/checkpoints/last.ckpt ]] && options+=(--ckpt_path last)
        mkdir -p "$run"
        echo "$model: log in $run/fit.log"
        "$python" -m fisherkernels fit "${options[@]}" >>"$run/fit.log" 2>&1 ||
            { tail -n 5 "$run/fit.log" >&2; exit 1; }
        echo "$*" >"$run/finished"
    fi
    splits=test
    [[ $model == reversed* ]] && splits="test train"
    if ((samples)); then
        # shellcheck disable=SC2086 # two words
        "$python" -m benchmarks.fisher_shannon_nll "$run" --splits $splits --samples "$samples" --data_root "$data"
    fi
done
"$python" -m benchmarks.fisher_shannon_experiment "$out" --out "$results"
