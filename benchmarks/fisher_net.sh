#!/usr/bin/env bash
# Trains FisherNet, VAE and CVAE on FashionMNIST at several latent sizes, one after the other, then makes the table and
# the figure of their test errors.
#   benchmarks/fisher_net.sh OUT_DIR [FIT_OPTION...]
# FIT_OPTIONs go to every `fisherkernels fit`, for example --trainer.max_epochs 20. A run that was interrupted continues
# from its last checkpoint when the script is started again; a finished one is skipped.
# DATA_ROOT: folder with FashionMNIST/raw/ (data). LATENT_DIMS: "2 5 10". MODELS: "fisher_net vae_learned vae
# cvae_learned cvae". RESULTS: where table and figure go (benchmarks/results/fisher_net). PYTHON: the interpreter.
set -euo pipefail
out=${1:?usage: benchmarks/fisher_net.sh OUT_DIR [FIT_OPTION...]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
data=$(realpath "${DATA_ROOT:-data}")
results=$(realpath -m "${RESULTS:-$(dirname "$0")/results/fisher_net}")
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

for latent_dim in ${LATENT_DIMS:-2 5 10}; do
    for model in ${MODELS:-fisher_net vae_learned vae cvae_learned cvae}; do
        run=$out/$model-d$latent_dim
        options=(--config "configs/${model%_learned}_fashion.yaml" --model.latent_dim "$latent_dim"
            --data.root "$data" --trainer.default_root_dir "$run")
        [[ $model == *_learned ]] && options+=(--model.learn_variance true)
        options+=("$@")
        if [[ -f $run/finished && $(<"$run/finished") == "$*" ]]; then
            echo "$model, d = $latent_dim: finished before"
            continue
        fi
        [[ -f $run/checkpoints/last.ckpt ]] && options+=(--ckpt_path last)
        mkdir -p "$run"
        echo "$model, d = $latent_dim: log in $run/fit.log"
        "$python" -m fisherkernels fit "${options[@]}" >>"$run/fit.log" 2>&1 ||
            { tail -n 5 "$run/fit.log" >&2; exit 1; }
        echo "$*" >"$run/finished"
    done
done
"$python" -m benchmarks.fisher_net_experiment "$out" --out "$results"
