// The vector-Jacobian product of scaled dot-product attention, and its backward pass, on CPU.
//
// P = softmax(s q kᵀ) is made again for some queries at a time, and with all that has its shape stays in the
// caches. Floor: the FLOPs, 10 N L S d for the product, 24 N L S d for its backward pass, d the width of
// queries and values.
#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/matmul.h"
#include "cpu/scratch.h"
#include "math/exp.h"

namespace fisherkernels {
namespace {

constexpr int64_t kQueries = 64;  // at a time
constexpr int64_t kWidest = 16;   // lanes of a vector: rows are padded to whole ones

// Some queries' rows of matrices [queries, S]; columns behind S are 0 in each.
template <typename T>
struct Rows {
  int64_t stride, columns, keys;
  int64_t first_limit;  // keys that the first query sees, one more for each that follows; causal
  bool causal;
  T scale;
  T* p;
  T* a;  // c vᵀ
  T* b;  // the tangent of the scores
  T* w;  // c t_vᵀ
  T* tangent;
  T* dropped;     // p m, with dropout of the weights; else p
  const T* kept;  // m, rows of S; or null

  int64_t seen(int64_t row) const { return causal ? std::min(keys, first_limit + row) : keys; }
};

// p = softmax(p) over the keys that are seen.
template <int kBytes, typename T>
FK_INLINE void softmax_of(const Rows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kLanes = lane_count<V>;
  constexpr T kLow = ExpConstants<T>::kLowNormal;
  for (int64_t i = begin; i < end; ++i) {
    T* p = rows.p + i * rows.stride;
    std::fill(p + rows.seen(i), p + rows.columns, -std::numeric_limits<T>::infinity());
    V largest, x, sum{};
    load_vector(largest, p);
    for (int64_t j = kLanes; j < rows.columns; j += kLanes) {
      load_vector(x, p + j);
      largest = x > largest ? x : largest;
    }
    T top = largest[0];
    for (int64_t k = 1; k < kLanes; ++k) top = largest[k] > top ? largest[k] : top;
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(x, p + j);
      x -= top;
      V e = exp_of_negative<V>(x);
      e = x <= V{} + kLow ? V{} : e;
      sum += e;
      store_vector(p + j, e);
    }
    const T over = T(1) / sum_of(sum);
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(x, p + j);
      x *= over;
      store_vector(p + j, x);
    }
  }
}

// a = s p (a - E a), E over the keys with weights p.
template <int kBytes, typename T>
FK_INLINE void product_of(const Rows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kLanes = lane_count<V>;
  for (int64_t i = begin; i < end; ++i) {
    const T* p = rows.p + i * rows.stride;
    T* a = rows.a + i * rows.stride;
    V weight, x, sum{};
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(weight, p + j);
      load_vector(x, a + j);
      sum += weight * x;
    }
    const T mean = sum_of(sum);
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(weight, p + j);
      load_vector(x, a + j);
      x = rows.scale * weight * (x - mean);
      store_vector(a + j, x);
    }
  }
}

// tangent = p (b - E b); b = s p ((a - E a) (b - E b) - C + w - E w), C the covariance of a and b, which is
// the gradient with respect to the scores; a = s p (a - E a).
template <int kBytes, typename T>
FK_INLINE void backward_of(const Rows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kLanes = lane_count<V>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = i * rows.stride;
    const T *p = rows.p + at, *w = rows.w + at;
    T *a = rows.a + at, *b = rows.b + at, *tangent = rows.tangent + at;
    V weight, x, y, z, of_a{}, of_b{}, of_w{}, of_both{};
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(weight, p + j);
      load_vector(x, a + j);
      load_vector(y, b + j);
      load_vector(z, w + j);
      of_a += weight * x;
      of_b += weight * y;
      of_w += weight * z;
    }
    const T mean_a = sum_of(of_a), mean_b = sum_of(of_b), mean_w = sum_of(of_w);
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(weight, p + j);
      load_vector(x, a + j);
      load_vector(y, b + j);
      of_both += weight * (x - mean_a) * (y - mean_b);
    }
    const T both = sum_of(of_both);
    for (int64_t j = 0; j < rows.columns; j += kLanes) {
      load_vector(weight, p + j);
      load_vector(x, a + j);
      load_vector(y, b + j);
      load_vector(z, w + j);
      x -= mean_a;
      y -= mean_b;
      z = rows.scale * weight * (x * y - both + z - mean_w);
      x *= rows.scale * weight;
      y *= weight;
      store_vector(a + j, x);
      store_vector(b + j, z);
      store_vector(tangent + j, y);
    }
  }
}

// dropped = p m, a = a m, w = w m.
template <int kBytes, typename T>
FK_INLINE void drop_of(const Rows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = i * rows.stride;
    for (int64_t j = 0; j < rows.columns; j += lane_count<V>) {
      V kept, x;
      load_row(kept, rows.kept + i * rows.keys, std::min(j, rows.keys), rows.keys, T(0));
      load_vector(x, rows.p + at + j);
      x *= kept;
      store_vector(rows.dropped + at + j, x);
      load_vector(x, rows.a + at + j);
      x *= kept;
      store_vector(rows.a + at + j, x);
      if (rows.w == nullptr) continue;
      load_vector(x, rows.w + at + j);
      x *= kept;
      store_vector(rows.w + at + j, x);
    }
  }
}

// tangent = tangent m.
template <int kBytes, typename T>
FK_INLINE void drop_tangent_of(const Rows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  for (int64_t i = begin; i < end; ++i) {
    T* tangent = rows.tangent + i * rows.stride;
    for (int64_t j = 0; j < rows.columns; j += lane_count<V>) {
      V kept, x;
      load_row(kept, rows.kept + i * rows.keys, std::min(j, rows.keys), rows.keys, T(0));
      load_vector(x, tangent + j);
      x *= kept;
      store_vector(tangent + j, x);
    }
  }
}

FK_WIDTHS(drop, Rows<float>)
FK_WIDTHS(drop, Rows<double>)
FK_WIDTHS(drop_tangent, Rows<float>)
FK_WIDTHS(drop_tangent, Rows<double>)
FK_WIDTHS(softmax, Rows<float>)
FK_WIDTHS(softmax, Rows<double>)
FK_WIDTHS(product, Rows<float>)
FK_WIDTHS(product, Rows<double>)
FK_WIDTHS(backward, Rows<float>)
FK_WIDTHS(backward, Rows<double>)

int64_t whole_vectors(int64_t n) { return (n + kWidest - 1) / kWidest * kWidest; }
int64_t stride_of(int64_t columns) { return row_stride(whole_vectors(columns)); }

// A matrix in scratch memory, with zeros behind its columns.
template <typename T>
struct Held {
  T* data;
  int64_t rows, columns, stride;
};

// Takes matrices from scratch memory one after the other.
template <typename T>
class Shelf {
 public:
  explicit Shelf(T* memory) : next_(memory) {}

  Held<T> empty(int64_t rows, int64_t columns) {
    const Held<T> held{next_, rows, columns, stride_of(columns)};
    next_ += rows * held.stride;
    return held;
  }

  // A contiguous matrix, or its transpose; zeros for null.
  Held<T> copy(const T* from, int64_t rows, int64_t columns) {
    const Held<T> held = empty(rows, columns);
    for (int64_t i = 0; i < rows; ++i) {
      T* row = held.data + i * held.stride;
      if (from) std::copy_n(from + i * columns, columns, row);
      std::fill(row + (from ? columns : 0), row + held.stride, T(0));
    }
    return held;
  }

  Held<T> transpose(const T* from, int64_t rows, int64_t columns) {
    const Held<T> held = empty(columns, rows);
    std::fill_n(held.data, columns * held.stride, T(0));
    for (int64_t i = 0; from && i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) held.data[j * held.stride + i] = from[i * columns + j];
    }
    return held;
  }

 private:
  T* next_;
};

// out = (or +=) left right for `rows` rows of left from `row` on, and what pads its columns.
template <typename T>
void times(const Held<T>& left, int64_t row, int64_t rows, const Held<T>& right, T* out, int64_t out_stride,
           bool add) {
  multiply({left.data + row * left.stride, left.stride, 1, right.data, right.stride, out, out_stride, rows,
            right.rows, whole_vectors(right.columns), add});
}

// out [S, columns] += rowsᵀ right, of rows [n, S] and of right's rows from `row` on.
template <typename T>
void transposed_times(const T* rows, int64_t stride, int64_t n, const Held<T>& right, int64_t row,
                      const Held<T>& out) {
  multiply({rows, 1, stride, right.data + row * right.stride, right.stride, out.data, out.stride, out.rows, n,
            whole_vectors(out.columns), true});
}

template <typename T>
void put(T* to, const Held<T>& held) {
  for (int64_t i = 0; i < held.rows; ++i) {
    std::copy_n(held.data + i * held.stride, held.columns, to + i * held.columns);
  }
}

// Of attentions that are computed one by one.
struct Shape {
  int64_t count, queries, keys, width, value_width;

  Shape(const Tensor& query, const Tensor& value)
      : count(query.size(0)),
        queries(query.size(1)),
        keys(value.size(1)),
        width(query.size(2)),
        value_width(value.size(2)) {}

  int64_t block() const { return std::min(kQueries, queries); }
};

// Elements of scratch memory for matrices of these sizes.
int64_t room(std::initializer_list<std::pair<int64_t, int64_t>> matrices) {
  int64_t total = 0;
  for (const auto& [rows, columns] : matrices) total += rows * stride_of(columns);
  return total;
}

template <typename T>
void scale_rows(const Held<T>& held, T scale) {
  for (int64_t i = 0; i < held.rows * held.stride; ++i) held.data[i] *= scale;
}

// What a task has of one attention: its factors, as they are and transposed, and room for scores.
template <typename T>
struct Attention {
  Held<T> query, scaled, key, key_t, value_t, cotangent;
  Rows<T> rows;
  const T* kept;

  // `matrices`: p, a, b, w, tangent, in this order.
  Attention(Shelf<T>& shelf, const Shape& n, const T* q, const T* k, const T* v, const T* c, const T* kept,
            double scale, bool causal, int matrices)
      : query(shelf.copy(q, n.queries, n.width)),
        scaled(shelf.copy(q, n.queries, n.width)),
        key(shelf.copy(k, n.keys, n.width)),
        key_t(shelf.transpose(k, n.keys, n.width)),
        value_t(shelf.transpose(v, n.keys, n.value_width)),
        cotangent(shelf.copy(c, n.queries, n.value_width)),
        kept(kept) {
    T* each[5] = {};
    for (int m = 0; m < matrices; ++m) each[m] = shelf.empty(n.block(), n.keys).data;
    rows = {};
    rows.stride = stride_of(n.keys);
    rows.columns = whole_vectors(n.keys);
    rows.keys = n.keys;
    rows.causal = causal;
    rows.scale = static_cast<T>(scale);
    rows.p = each[0];
    rows.a = each[1];
    rows.b = each[2];
    rows.w = each[3];
    rows.tangent = each[4];
    rows.dropped = kept ? shelf.empty(n.block(), n.keys).data : rows.p;
    scale_rows(scaled, rows.scale);
  }

  static int64_t room_for(const Shape& n, int matrices) {
    return room({{3 * n.queries, n.width},
                 {n.keys, n.width},
                 {n.width, n.keys},
                 {n.value_width, n.keys},
                 {n.queries, n.value_width},
                 {(matrices + 1) * n.block(), n.keys}});
  }

  // f(first, count) for some queries at a time, with their P and c vᵀ.
  template <typename F>
  void for_queries(F f) {
    for (int64_t first = 0; first < query.rows; first += kQueries) {
      const int64_t count = std::min(kQueries, query.rows - first);
      rows.first_limit = first + 1;
      rows.kept = kept ? kept + first * rows.keys : nullptr;
      times(scaled, first, count, key_t, rows.p, rows.stride, false);
      softmax(rows, 0, count);
      times(cotangent, first, count, value_t, rows.a, rows.stride, false);
      f(first, count);
    }
  }

  // Rows of scores as a factor.
  Held<T> scores(T* data, int64_t count) const { return {data, count, key.rows, rows.stride}; }
};

template <typename T>
void into(const Held<T>& out, int64_t first, int64_t count, const Held<T>& left, const Held<T>& right,
          bool add) {
  times(left, 0, count, right, out.data + first * out.stride, out.stride, add);
}

// The cotangents of query, key and value; all [N, L or S, width]. kept [N, L, S]: what dropout multiplies the
// weights with, if there is any.
std::tuple<Tensor, Tensor, Tensor> attention_pull(const Tensor& cotangent_in, const Tensor& query_in,
                                                  const Tensor& key_in, const Tensor& value_in,
                                                  const std::optional<Tensor>& kept_in, double scale,
                                                  bool causal) {
  const Tensor cotangent = as_contiguous(cotangent_in), query = as_contiguous(query_in),
               key = as_contiguous(key_in), value = as_contiguous(value_in);
  const std::optional<Tensor> mask = as_contiguous(kept_in);
  const Shape n(query, value);
  const Tensor to_query = new_output(query, query.sizes()), to_key = new_output(key, key.sizes()),
               to_value = new_output(value, value.sizes());
  dispatch_full_precision(query, "attention_pull", [&](auto element) {
    using T = decltype(element);
    const T *c = pointer<T>(cotangent), *q = pointer<T>(query), *k = pointer<T>(key), *v = pointer<T>(value);
    const T* kept = pointer<T>(mask);
    T *gq = output_pointer<T>(to_query), *gk = output_pointer<T>(to_key), *gv = output_pointer<T>(to_value);
    const int64_t memory = Attention<T>::room_for(n, 2) +
                           room({{n.queries, n.width}, {n.keys, n.width}, {n.keys, n.value_width}});
    const int64_t of_q = n.queries * n.width, of_k = n.keys * n.width, of_c = n.queries * n.value_width,
                  of_v = n.keys * n.value_width;
    for_rows(n.count, n.queries * n.keys * (n.width + n.value_width), [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(memory);
      for (int64_t i = begin; i < end; ++i) {
        Shelf<T> shelf(scratch.data());
        Attention<T> at(shelf, n, q + i * of_q, k + i * of_k, v + i * of_v, c + i * of_c,
                        kept ? kept + i * n.queries * n.keys : nullptr, scale, causal, 2);
        const Held<T> sum_q = shelf.empty(n.queries, n.width), sum_k = shelf.copy(nullptr, n.keys, n.width),
                      sum_v = shelf.copy(nullptr, n.keys, n.value_width);
        at.for_queries([&](int64_t first, int64_t count) {
          const Rows<T>& rows = at.rows;
          if (rows.kept) drop(rows, 0, count);
          transposed_times(rows.dropped, rows.stride, count, at.cotangent, first, sum_v);
          product(rows, 0, count);
          into(sum_q, first, count, at.scores(rows.a, count), at.key, false);
          transposed_times(rows.a, rows.stride, count, at.query, first, sum_k);
        });
        put(gq + i * of_q, sum_q);
        put(gk + i * of_k, sum_k);
        put(gv + i * of_v, sum_v);
      }
    });
  });
  return {to_query, to_key, to_value};
}

// From the gradients of what attention_pull gives (none of some): those of the cotangent, query, key and
// value.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_pull_backward(
    const std::optional<Tensor>& tangent_query, const std::optional<Tensor>& tangent_key,
    const std::optional<Tensor>& tangent_value, const Tensor& cotangent_in, const Tensor& query_in,
    const Tensor& key_in, const Tensor& value_in, const std::optional<Tensor>& kept_in, double scale,
    bool causal) {
  const Tensor cotangent = as_contiguous(cotangent_in), query = as_contiguous(query_in),
               key = as_contiguous(key_in), value = as_contiguous(value_in);
  const std::optional<Tensor> along_query = as_contiguous(tangent_query),
                              along_key = as_contiguous(tangent_key),
                              along_value = as_contiguous(tangent_value);
  const std::optional<Tensor> mask = as_contiguous(kept_in);
  const Shape n(query, value);
  const Tensor to_cotangent = new_output(cotangent, cotangent.sizes()),
               to_query = new_output(query, query.sizes()), to_key = new_output(key, key.sizes()),
               to_value = new_output(value, value.sizes());
  dispatch_full_precision(query, "attention_pull_backward", [&](auto element) {
    using T = decltype(element);
    const T *c = pointer<T>(cotangent), *q = pointer<T>(query), *k = pointer<T>(key), *v = pointer<T>(value);
    const T* kept = pointer<T>(mask);
    const T *tq = pointer<T>(along_query), *tk = pointer<T>(along_key), *tv = pointer<T>(along_value);
    T *gc = output_pointer<T>(to_cotangent), *gq = output_pointer<T>(to_query),
      *gk = output_pointer<T>(to_key), *gv = output_pointer<T>(to_value);
    const int64_t memory = Attention<T>::room_for(n, 5) + room({{3 * n.queries, n.width},
                                                                {2 * n.keys, n.width},
                                                                {n.width, n.keys},
                                                                {3 * n.keys, n.value_width},
                                                                {n.value_width, n.keys},
                                                                {n.queries, n.value_width}});
    const int64_t of_q = n.queries * n.width, of_k = n.keys * n.width, of_c = n.queries * n.value_width,
                  of_v = n.keys * n.value_width;
    const auto from = [](const T* tensor, int64_t offset) { return tensor ? tensor + offset : nullptr; };
    for_rows(n.count, n.queries * n.keys * (n.width + n.value_width), [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(memory);
      for (int64_t i = begin; i < end; ++i) {
        Shelf<T> shelf(scratch.data());
        Attention<T> at(shelf, n, q + i * of_q, k + i * of_k, v + i * of_v, c + i * of_c,
                        kept ? kept + i * n.queries * n.keys : nullptr, scale, causal, 5);
        const Held<T> values = shelf.copy(v + i * of_v, n.keys, n.value_width),
                      t_query = shelf.copy(from(tq, i * of_q), n.queries, n.width),
                      t_scaled = shelf.copy(from(tq, i * of_q), n.queries, n.width),
                      t_key = shelf.copy(from(tk, i * of_k), n.keys, n.width),
                      t_key_t = shelf.transpose(from(tk, i * of_k), n.keys, n.width),
                      t_value = shelf.copy(from(tv, i * of_v), n.keys, n.value_width),
                      t_value_t = shelf.transpose(from(tv, i * of_v), n.keys, n.value_width),
                      sum_c = shelf.empty(n.queries, n.value_width), sum_q = shelf.empty(n.queries, n.width),
                      sum_k = shelf.copy(nullptr, n.keys, n.width),
                      sum_v = shelf.copy(nullptr, n.keys, n.value_width);
        scale_rows(t_scaled, at.rows.scale);
        at.for_queries([&](int64_t first, int64_t count) {
          const Rows<T>& rows = at.rows;
          times(t_scaled, first, count, at.key_t, rows.b, rows.stride, false);
          times(at.scaled, first, count, t_key_t, rows.b, rows.stride, true);
          times(at.cotangent, first, count, t_value_t, rows.w, rows.stride, false);
          if (rows.kept) drop(rows, 0, count);
          backward(rows, 0, count);
          if (rows.kept) drop_tangent(rows, 0, count);
          const Held<T> p = at.scores(rows.dropped, count), tangent = at.scores(rows.tangent, count),
                        pulled = at.scores(rows.a, count), bent = at.scores(rows.b, count);
          into(sum_c, first, count, tangent, values, false);
          into(sum_c, first, count, p, t_value, true);
          into(sum_q, first, count, pulled, t_key, false);
          into(sum_q, first, count, bent, at.key, true);
          transposed_times(rows.tangent, rows.stride, count, at.cotangent, first, sum_v);
          transposed_times(rows.a, rows.stride, count, t_query, first, sum_k);
          transposed_times(rows.b, rows.stride, count, at.query, first, sum_k);
        });
        put(gc + i * of_c, sum_c);
        put(gq + i * of_q, sum_q);
        put(gk + i * of_k, sum_k);
        put(gv + i * of_v, sum_v);
      }
    });
  });
  return {to_cotangent, to_query, to_key, to_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("attention_pull", TORCH_BOX(&attention_pull));
  m.impl("attention_pull_backward", TORCH_BOX(&attention_pull_backward));
}

}  // namespace fisherkernels
