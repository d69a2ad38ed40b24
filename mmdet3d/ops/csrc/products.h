// Products of gathered rows with kernel matrices on the CPU, in blocks that stay in registers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Vectors as long as the processor's registers; a block of rows x vectors occupies most of the registers.
#if defined(__AVX512F__)
constexpr int BYTES = 64, PANEL = 4;
#elif defined(__AVX__)
constexpr int BYTES = 32, PANEL = 2;
#elif defined(__aarch64__)
constexpr int BYTES = 16, PANEL = 4;
#else
constexpr int BYTES = 16, PANEL = 2;
#endif

template <typename T> struct Vectors;
template <> struct Vectors<float> { typedef float type __attribute__((vector_size(BYTES))); };
template <> struct Vectors<double> { typedef double type __attribute__((vector_size(BYTES))); };
template <typename T> using Vector = typename Vectors<T>::type;
template <typename T> constexpr int64_t VALUES = BYTES / sizeof(T);

template <typename T>
inline Vector<T> load(const T* source) {
  Vector<T> value;
  memcpy(&value, source, BYTES);
  return value;
}
template <typename T>
inline void store(T* target, Vector<T> value) { memcpy(target, &value, BYTES); }

// a * b + c, rounded once where the processor can. A compiler left to choose does it in blocks of some sizes and not of
// others, and the last bit of a row would depend on the block that it falls into, hence on the number of threads.
#if defined(__AVX512F__)
inline Vector<float> multiply_add(float a, Vector<float> b, Vector<float> c) {
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
}
inline Vector<double> multiply_add(double a, Vector<double> b, Vector<double> c) {
  return _mm512_fmadd_pd(_mm512_set1_pd(a), b, c);
}
#elif defined(__FMA__)
inline Vector<float> multiply_add(float a, Vector<float> b, Vector<float> c) {
  return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
}
inline Vector<double> multiply_add(double a, Vector<double> b, Vector<double> c) {
  return _mm256_fmadd_pd(_mm256_set1_pd(a), b, c);
}
#elif defined(__aarch64__)
inline Vector<float> multiply_add(float a, Vector<float> b, Vector<float> c) { return vfmaq_n_f32(c, b, a); }
inline Vector<double> multiply_add(double a, Vector<double> b, Vector<double> c) { return vfmaq_n_f64(c, b, a); }
#else
template <typename T>
Vector<T> multiply_add(T a, Vector<T> b, Vector<T> c) { return a * b + c; }
#endif

template <typename T>
int64_t padded(int64_t channels) { return (channels + VALUES<T> - 1) / VALUES<T> * VALUES<T>; }

// Memory aligned for vectors, filled with zeros.
template <typename T>
struct Scratch {
  std::vector<Vector<T>> vectors;
  explicit Scratch(int64_t values) : vectors(values / VALUES<T>, Vector<T>{}) {}
  T* data() { return (T*)vectors.data(); }
};

// Calls body(integral_constant<V>, first column) for panels of PANEL vectors and one of what is left.
template <typename T, typename Body>
void for_panels(int64_t columns, Body body) {
  int64_t begin = 0, panel = PANEL * VALUES<T>;
  for (; begin + panel <= columns; begin += panel) body(std::integral_constant<int, PANEL>(), begin);
  int64_t left = (columns - begin) / VALUES<T>;
  if (left == 1) body(std::integral_constant<int, 1>(), begin);
  if constexpr (PANEL == 4) {
    if (left == 2) body(std::integral_constant<int, 2>(), begin);
    if (left == 3) body(std::integral_constant<int, 3>(), begin);
  }
}

// How many rows a block of this many vectors takes, so that it fills the registers.
constexpr int rows_at_once(int vectors) { return PANEL == 2 ? 6 : vectors == 4 ? 6 : 8; }

// targets[r][column...] += sources[r] @ panel for R rows; panel is (inputs, V vectors).
template <typename T, int V, int R>
void multiply(const T* const* sources, T* const* targets, int64_t column, const T* panel, int64_t inputs) {
  Vector<T> sum[R][V] = {};
  for (int64_t i = 0; i < inputs; ++i, panel += V * VALUES<T>) {
    Vector<T> factor[V];
    for (int v = 0; v < V; ++v) factor[v] = load(panel + v * VALUES<T>);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(sources[r][i], factor[v], sum[r][v]);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      T* place = targets[r] + column + v * VALUES<T>;
      store(place, load(place) + sum[r][v]);
    }
}

// Any number of rows: blocks of R, then one smaller block.
template <typename T, int V, int R>
void multiply_all(int64_t rows, const T* const* sources, T* const* targets, int64_t column, const T* panel,
                  int64_t inputs) {
  for (; rows >= R; rows -= R, sources += R, targets += R) multiply<T, V, R>(sources, targets, column, panel, inputs);
  if constexpr (R > 1) multiply_all<T, V, R - 1>(rows, sources, targets, column, panel, inputs);
}

// weight (offsets, inputs, outputs) -> per offset the panels one after the other, each (inputs, its columns).
template <typename T>
void pack(int64_t offsets, int64_t inputs, int64_t outputs, const T* weight, T* packed, int threads) {
  int64_t width = padded<T>(outputs);
#pragma omp parallel for num_threads(threads)
  for (int64_t k = 0; k < offsets; ++k)
    for_panels<T>(width, [&](auto vectors, int64_t begin) {
      int64_t columns = vectors * VALUES<T>, used = std::min(columns, outputs - begin);
      T* panel = packed + (k * width + begin) * inputs;
      for (int64_t i = 0; i < inputs; ++i)
        std::copy_n(weight + (k * inputs + i) * outputs + begin, used, panel + i * columns);
    });
}

// A tile of output rows gathers what it needs: out[o] = sum over k of features[neighbors[k][o]] @ weight[k], in the
// order of k whatever the tile and the thread.
template <typename T>
void convolve(int64_t offsets, int64_t rows, int64_t inputs, int64_t outputs, const T* features, const T* weight,
              const int32_t* neighbors, T* out, int threads) {
  int64_t width = padded<T>(outputs);
  Scratch<T> packed(offsets * inputs * width);
  pack(offsets, inputs, outputs, weight, packed.data(), threads);
  int64_t fair = (rows + 4 * threads - 1) / (4 * threads), fitting = (1 << 17) / (width * (int64_t)sizeof(T));
  int64_t tile = std::max<int64_t>(32, std::min(fair, fitting)), tiles = (rows + tile - 1) / tile;
#pragma omp parallel num_threads(threads)
  {
    Scratch<T> sums(tile * width);
    std::vector<const T*> sources(tile);
    std::vector<T*> targets(tile);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t begin = t * tile, size = std::min(tile, rows - begin);
      std::fill_n(sums.data(), size * width, T(0));
      for (int64_t k = 0; k < offsets; ++k) {
        const int32_t* found = neighbors + k * rows + begin;
        int64_t pairs = 0;  // written always, kept where there is a neighbour: no branch to mispredict
        for (int64_t o = 0; o < size; ++o) {
          sources[pairs] = features + std::max<int64_t>(found[o], 0) * inputs;
          targets[pairs] = sums.data() + o * width;
          pairs += found[o] >= 0;
        }
        for_panels<T>(width, [&](auto vectors, int64_t column) {
          constexpr int V = decltype(vectors)::value, R = rows_at_once(V);
          multiply_all<T, V, R>(pairs, sources.data(), targets.data(), column,
                                packed.data() + (k * width + column) * inputs, inputs);
        });
      }
      for (int64_t o = 0; o < size; ++o) std::copy_n(sums.data() + o * width, outputs, out + (begin + o) * outputs);
    }
  }
}

// block (R rows of `width` apart, V vectors) += sum over pairs of sources[p][row + r] * gradients[p][column...].
template <typename T, int V, int R>
void outer(int64_t pairs, const T* const* sources, const T* const* gradients, int64_t row, int64_t column, T* block,
           int64_t width) {
  Vector<T> sum[R][V] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    const T* source = sources[p] + row;
    Vector<T> gradient[V];
    for (int v = 0; v < V; ++v) gradient[v] = load(gradients[p] + column + v * VALUES<T>);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(source[r], gradient[v], sum[r][v]);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      T* place = block + r * width + v * VALUES<T>;
      store(place, load(place) + sum[r][v]);
    }
}

// All rows of the block.
template <typename T, int V, int R>
void outer_all(int64_t rows, int64_t pairs, const T* const* sources, const T* const* gradients, int64_t row,
               int64_t column, T* block, int64_t width) {
  for (; rows >= R; rows -= R, row += R, block += R * width)
    outer<T, V, R>(pairs, sources, gradients, row, column, block, width);
  if constexpr (R > 1) outer_all<T, V, R - 1>(rows, pairs, sources, gradients, row, column, block, width);
}

// out[k] = sum over o of features[neighbors[k][o]] (outer product) gradient[o]. Segments of rows, as many as the size
// demands and not as there are threads, are summed apart and added up in order; a task takes a part of the inputs.
template <typename T>
void weight_gradient(int64_t offsets, int64_t rows, int64_t inputs, int64_t outputs, const T* features,
                     const T* gradient, const int32_t* neighbors, T* out, int threads) {
  constexpr int64_t CHUNK = 64;  // pairs that stay in the first cache while all blocks pass over them
  constexpr int64_t PART = 192;  // inputs that a task takes at most; a multiple of the rows of every block
  int64_t width = padded<T>(outputs), segments = std::min<int64_t>(8, rows / 8192 + 1);
  int64_t length = (rows + segments - 1) / segments, matrix = inputs * width, parts = (inputs + PART - 1) / PART;
  Scratch<T> wide(width == outputs ? 0 : rows * width), sums(segments * offsets * matrix);
  if (width != outputs)
    for (int64_t o = 0; o < rows; ++o) std::copy_n(gradient + o * outputs, outputs, wide.data() + o * width);
  const T* grads = width == outputs ? gradient : wide.data();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < segments * offsets * parts; ++task) {
    int64_t place = task / parts, first = task % parts * PART, taken = std::min(PART, inputs - first);
    const int32_t* found = neighbors + place % offsets * rows;
    int64_t o = place / offsets * length, end = std::min(o + length, rows);
    T* block = sums.data() + place * matrix + first * width;
    const T *source_rows[CHUNK], *gradient_rows[CHUNK];
    while (o < end) {
      int64_t pairs = 0;
      for (; o < end && pairs < CHUNK; ++o) {
        source_rows[pairs] = features + std::max<int64_t>(found[o], 0) * inputs;
        gradient_rows[pairs] = grads + o * width;
        pairs += found[o] >= 0;
      }
      for_panels<T>(width, [&](auto vectors, int64_t column) {
        constexpr int V = decltype(vectors)::value, R = rows_at_once(V);
        outer_all<T, V, R>(taken, pairs, source_rows, gradient_rows, first, column, block + column, width);
      });
    }
  }
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < offsets * inputs; ++row)
    for (int64_t c = 0; c < outputs; ++c) {
      T sum = 0;
      for (int64_t s = 0; s < segments; ++s) sum += sums.data()[(s * offsets * inputs + row) * width + c];
      out[row * outputs + c] = sum;
    }
}
