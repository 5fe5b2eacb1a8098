// Products of a few rows with a large weight matrix, for XLA's CPU backend.
//
// Decoding multiplies 1 to some dozen rows by every weight of a model, so that its time is that of reading the weights
// once. XLA's own products repack the weights at every call. Here a weight is read as it is stored, `[O, I]` with I
// contiguous, by all cores, and each load serves as many rows as there are registers for.
//
// The sum behind one element of the result runs in one order, whatever the number of rows or threads: a token's
// numbers are the same to the bit whether it is scored alone or beside others.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "xla/ffi/api/ffi.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ffi = xla::ffi;

namespace {

// Vectors of 64 bytes: one register with AVX-512, and as many narrower ones as it takes elsewhere.
typedef float F32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));

// How far ahead weights are called into the second cache. Four rows are read at a time, which the processor does not
// see through: left to itself a core reads at half of what the memory gives.
constexpr int64_t kAhead = 16 << 10;

constexpr int64_t kGroup = 64;  // int8 activations share a scale in groups of so many

template <class V>
inline V Load(const void* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

inline float Sum(F32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lanes[16];
  std::memcpy(lanes, &v, sizeof v);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
#endif
}

// The sums of four vectors side by side. A matrix of few columns has hardly more products than sums.
inline void SumFour(const F32* v, float* out) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512d ab = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512d cd = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                    _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
  for (int i = 0; i < 4; ++i) out[i] = Sum(v[i]);
#endif
}

// How each kind of weight is multiplied: `kStep` elements at a time, and one by one behind the last whole step.
struct Float32 {
  using Weight = float;
  using Row = float;
  using Vector = F32;
  static constexpr int64_t kStep = 16;
  static inline F32 Add(F32 sum, Vector weight, Vector row) { return sum + weight * row; }
  static inline float AddOne(float sum, Weight weight, Row row) { return sum + weight * row; }
};

struct BFloat16 {
  using Weight = uint16_t;
  using Row = uint16_t;
  using Vector = U32;  // two elements a lane
  static constexpr int64_t kStep = 32;
  static inline F32 Add(F32 sum, Vector weight, Vector row) {
#if defined(__AVX512BF16__)
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)row);
#else
    sum += (F32)(weight << 16) * (F32)(row << 16);
    return sum + (F32)(weight & 0xffff0000u) * (F32)(row & 0xffff0000u);
#endif
  }
  static inline float Widen(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  static inline float AddOne(float sum, Weight weight, Row row) { return sum + Widen(weight) * Widen(row); }
};

// `kOut` weights by `kRows` rows; out[r * stride + o].
template <class Kind, int kOut, int kRows>
inline void Tile(const typename Kind::Weight* weight, const typename Kind::Row* rows, int64_t size, float* out,
                 int64_t stride) {
  using Vector = typename Kind::Vector;
  F32 sums[kRows][kOut] = {};
  int64_t i = 0;
  for (; i + Kind::kStep <= size; i += Kind::kStep) {
    Vector w[kOut];
    for (int o = 0; o < kOut; ++o) {
      w[o] = Load<Vector>(weight + o * size + i);
      __builtin_prefetch(reinterpret_cast<const char*>(weight + o * size + i) + kAhead, 0, 2);
    }
    for (int r = 0; r < kRows; ++r) {
      const Vector x = Load<Vector>(rows + r * size + i);
      for (int o = 0; o < kOut; ++o) sums[r][o] = Kind::Add(sums[r][o], w[o], x);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float whole[kOut];
    if constexpr (kOut == 4) {
      SumFour(sums[r], whole);
    } else {
      for (int o = 0; o < kOut; ++o) whole[o] = Sum(sums[r][o]);
    }
    for (int o = 0; o < kOut; ++o) {
      for (int64_t j = i; j < size; ++j) whole[o] = Kind::AddOne(whole[o], weight[o * size + j], rows[r * size + j]);
      out[r * stride + o] = whole[o];
    }
  }
}

template <class Kind, int kOut>
void Rows(const typename Kind::Weight* weight, const typename Kind::Row* rows, int64_t count, int64_t size, float* out,
          int64_t stride) {
  // As many rows as there are registers for the sums; a remainder of one row costs as much as two.
  while (count > 0) {
    const int64_t now = count <= 6 ? count : count < 12 ? (count + 1) / 2 : 6;
    switch (now) {
      case 1: Tile<Kind, kOut, 1>(weight, rows, size, out, stride); break;
      case 2: Tile<Kind, kOut, 2>(weight, rows, size, out, stride); break;
      case 3: Tile<Kind, kOut, 3>(weight, rows, size, out, stride); break;
      case 4: Tile<Kind, kOut, 4>(weight, rows, size, out, stride); break;
      case 5: Tile<Kind, kOut, 5>(weight, rows, size, out, stride); break;
      default: Tile<Kind, kOut, 6>(weight, rows, size, out, stride); break;
    }
    rows += now * size;
    out += now * stride;
    count -= now;
  }
}

// Work in numbered parts, done by whoever comes.
struct Job {
  std::function<void(int64_t)> part;
  int64_t parts;
  std::atomic<int64_t> next{0}, done{0};

  void Help() {
    for (int64_t i; (i = next.fetch_add(1)) < parts;) {
      part(i);
      done.fetch_add(1);
    }
  }
};

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Threads that stay awake for a moment after each job: between two products of a model lie some ten microseconds, and
// to wake a thread that sleeps, as XLA's pool does, takes longer than many of them. One job at a time.
class Workers {
 public:
  static Workers& Get() {
    static Workers* workers = new Workers;  // never destroyed: threads may outlive main
    return *workers;
  }

  // Does all parts, on as many threads as are free. If another thread's job is going on, this one does its own alone.
  void Run(int64_t parts, std::function<void(int64_t)> part) {
    if (parts == 1 || threads_ == 0 || owned_.exchange(true)) {
      for (int64_t i = 0; i < parts; ++i) part(i);
      return;
    }
    auto job = std::make_shared<Job>();
    job->part = std::move(part);
    job->parts = parts;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      generation_.fetch_add(1);
    }
    if (asleep_.load() > 0) wake_.notify_all();
    job->Help();
    // A thread that comes late finds no part left, and touches nothing but its own hold of the job.
    while (job->done.load() < parts) Pause();
    owned_.store(false);
  }

 private:
  Workers() {
    const int64_t cores = std::max<int64_t>(1, Cores());
    for (; threads_ < cores - 1; ++threads_) std::thread([this] { Serve(); }).detach();
  }

  static int64_t Cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return std::thread::hardware_concurrency();
  }

  void Serve() {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_relaxed) == seen; ++i) Pause();
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (generation_.load() == seen) {
          asleep_.fetch_add(1);
          wake_.wait(lock, [&] { return generation_.load() != seen; });
          asleep_.fetch_sub(1);
        }
        seen = generation_.load();
        job = job_;
      }
      job->Help();
    }
  }

  static constexpr int kSpins = 4000;  // some 0.1 ms
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> owned_{false};
  int64_t threads_ = 0;
};

// Outputs a part: enough bytes that taking one costs nothing beside it, and few enough that threads end together.
inline int64_t PartSize(int64_t outputs, int64_t row_bytes) {
  const int64_t wanted = std::max<int64_t>(1, (int64_t{128} << 10) / std::max<int64_t>(row_bytes, 1));
  return std::min<int64_t>((wanted + 3) / 4 * 4, (outputs + 3) / 4 * 4);
}

// The products of the same rows with several weights, as one job.
template <class Kind>
struct Products {
  struct One {
    const typename Kind::Weight* weight;
    int64_t outputs;
    float* out;
    int64_t part, first;  // outputs a part, and the number of its first part
  };

  const typename Kind::Row* rows;
  int64_t count, size, parts = 0;
  std::vector<One> all;

  void Add(const typename Kind::Weight* weight, int64_t outputs, float* out) {
    const int64_t part = PartSize(outputs, size * sizeof(typename Kind::Weight));
    all.push_back({weight, outputs, out, part, parts});
    parts += (outputs + part - 1) / part;
  }

  void Part(int64_t number) const {
    size_t which = all.size() - 1;
    while (all[which].first > number) --which;
    const One& one = all[which];
    int64_t o = (number - one.first) * one.part;
    const int64_t end = std::min(one.outputs, o + one.part);
    for (; o + 4 <= end; o += 4) Rows<Kind, 4>(one.weight + o * size, rows, count, size, one.out + o, one.outputs);
    for (; o < end; ++o) Rows<Kind, 1>(one.weight + o * size, rows, count, size, one.out + o, one.outputs);
  }

  void Run() const {
    Workers::Get().Run(parts, [this](int64_t number) { Part(number); });
  }
};

// Rows, then weights; one result a weight.
template <class Kind>
ffi::Error Plain(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  auto rows = arguments.get<ffi::AnyBuffer>(0);
  if (!rows.has_value()) return rows.error();
  Products<Kind> products{static_cast<const typename Kind::Row*>(rows->untyped_data()), rows->dimensions()[0],
                          rows->dimensions()[1]};
  for (size_t i = 0; i < results.size(); ++i) {
    auto weight = arguments.get<ffi::AnyBuffer>(i + 1);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!weight.has_value()) return weight.error();
    if (!out.has_value()) return out.error();
    products.Add(static_cast<const typename Kind::Weight*>(weight->untyped_data()), weight->dimensions()[0],
                 static_cast<float*>((*out)->untyped_data()));
  }
  products.Run();
  return ffi::Error::Success();
}

ffi::Error Float32Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Plain<Float32>(arguments, results);
}

ffi::Error BFloat16Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Plain<BFloat16>(arguments, results);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_float32, Float32Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_bfloat16, BFloat16Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());

// The instructions that the compiler was allowed, for reports.
extern "C" const char* kljudge_describe() {
#if defined(__AVX512BF16__)
  return "AVX-512 with bfloat16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "portable";
#endif
}
