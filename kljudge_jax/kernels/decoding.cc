// Products of a few rows with a large weight matrix, and attention over a cache, for XLA's CPU backend.
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

// The sums of each of `kOut` vectors.
template <int kOut>
inline void SumEach(const F32* v, float* out) {
  if constexpr (kOut == 4) {
    SumFour(v, out);
  } else {
    for (int o = 0; o < kOut; ++o) out[o] = Sum(v[o]);
  }
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
    SumEach<kOut>(sums[r], whole);
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

// The outputs of several weights as one job: calls `four(which, o)` for four outputs from o on of weight `which`, and
// `one(which, o)` for each that is left over at its end.
template <class Four, class One>
void OverOutputs(const std::vector<int64_t>& outputs, int64_t row_bytes, Four four, One one) {
  std::vector<int64_t> first;  // the number of each weight's first part
  int64_t parts = 0;
  for (const int64_t count : outputs) {
    first.push_back(parts);
    const int64_t part = PartSize(count, row_bytes);
    parts += (count + part - 1) / part;
  }
  Workers::Get().Run(parts, [&](int64_t number) {
    size_t which = outputs.size() - 1;
    while (first[which] > number) --which;
    const int64_t part = PartSize(outputs[which], row_bytes);
    int64_t o = (number - first[which]) * part;
    const int64_t end = std::min(outputs[which], o + part);
    for (; o + 4 <= end; o += 4) four(which, o);
    for (; o < end; ++o) one(which, o);
  });
}

// Rows, then weights; one result a weight.
template <class Kind>
ffi::Error Plain(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  auto given = arguments.get<ffi::AnyBuffer>(0);
  if (!given.has_value()) return given.error();
  const auto* rows = static_cast<const typename Kind::Row*>(given->untyped_data());
  const int64_t count = given->dimensions()[0], size = given->dimensions()[1];
  std::vector<const typename Kind::Weight*> weights;
  std::vector<float*> outs;
  std::vector<int64_t> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    auto weight = arguments.get<ffi::AnyBuffer>(i + 1);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!weight.has_value()) return weight.error();
    if (!out.has_value()) return out.error();
    weights.push_back(static_cast<const typename Kind::Weight*>(weight->untyped_data()));
    outs.push_back(static_cast<float*>((*out)->untyped_data()));
    outputs.push_back(weight->dimensions()[0]);
  }
  OverOutputs(
      outputs, size * sizeof(typename Kind::Weight),
      [&](size_t which, int64_t o) {
        Rows<Kind, 4>(weights[which] + o * size, rows, count, size, outs[which] + o, outputs[which]);
      },
      [&](size_t which, int64_t o) {
        Rows<Kind, 1>(weights[which] + o * size, rows, count, size, outs[which] + o, outputs[which]);
      });
  return ffi::Error::Success();
}

ffi::Error Float32Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Plain<Float32>(arguments, results);
}

ffi::Error BFloat16Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Plain<BFloat16>(arguments, results);
}

// Rows rounded to int8 in groups of 64 that share a scale: what the integer products multiply with. A row ends in zeros
// up to a whole group.
struct Int8Rows {
  int64_t count, size, groups;
  std::vector<int8_t> values;  // [count, groups, 64]
  std::vector<float> scales;   // [count, groups]
  std::vector<int32_t> sums;   // [count, groups, 16], of four neighbours each

  Int8Rows(const float* rows, int64_t count, int64_t size)
      : count(count), size(size), groups((size + kGroup - 1) / kGroup), values(count * groups * kGroup),
        scales(count * groups), sums(count * groups * 16) {
    const int64_t each = std::max<int64_t>(1, count * groups / 16);
    Workers::Get().Run((count * groups + each - 1) / each, [&](int64_t part) {
      for (int64_t i = part * each; i < std::min(count * groups, (part + 1) * each); ++i) Round(rows, i);
    });
  }

  void Round(const float* rows, int64_t i) {
    const int64_t from = i % groups * kGroup, there = std::min(kGroup, size - from);
    const float* x = rows + i / groups * size + from;
    float most = 0;
    bool fit = true;
    for (int64_t j = 0; j < there; ++j) {
      most = std::max(most, std::fabs(x[j]));
      fit &= std::isfinite(x[j]);
    }
    // What is no number makes the whole row none, as it does in a float product.
    scales[i] = fit ? most / 127 : NAN;
    const float inverse = fit && most > 0 ? 127 / most : 0;
    int8_t* to = values.data() + i * kGroup;
    for (int64_t j = 0; j < there; ++j) to[j] = static_cast<int8_t>(std::lrint(fit ? x[j] * inverse : 0));
    for (int64_t j = 0; j < 16; ++j) {
      const int8_t* four = to + 4 * j;
      sums[i * 16 + j] = four[0] + four[1] + four[2] + four[3];
    }
  }
};

typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint8_t U8 __attribute__((vector_size(64)));
typedef uint8_t U8Half __attribute__((vector_size(32)));

// sum + unsigned bytes by signed bytes, four neighbours a lane.
inline I32 DotBytes(I32 sum, U8 unsigned_bytes, U8 signed_bytes) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
  for (int lane = 0; lane < 16; ++lane)
    for (int i = 0; i < 4; ++i)
      sum[lane] += int32_t(unsigned_bytes[4 * lane + i]) * int32_t(int8_t(signed_bytes[4 * lane + i]));
  return sum;
#endif
}

// An int8 weight, one scale an output. 128 is added to make its bytes unsigned, and 128 times a row's sum taken off.
struct Int8 {
  const int8_t* weight;  // [O, I]
  const float* scale;    // [O]
  static constexpr int32_t kOffset = 128;

  static int64_t Bytes(int64_t size) { return size; }
  const void* At(int64_t o, int64_t g, int64_t size) const { return weight + o * size + g * kGroup; }
  U8 Group(int64_t o, int64_t g, int64_t size) const {
    const int8_t* at = weight + o * size + g * kGroup;
    U8 bytes = {};
    if (g * kGroup + kGroup <= size) bytes = Load<U8>(at);
    else std::memcpy(&bytes, at, size - g * kGroup);
    return bytes ^ uint8_t{0x80};
  }
  F32 Scales(int64_t, int64_t, int64_t) const { return F32{} + 1.0f; }
  float Final(int64_t o) const { return scale[o]; }
  static constexpr bool kScaledGroups = false;
};

// An int4 weight, 32 values a scale: of 64 values byte j holds value j in its lower half and j + 32 in its upper one,
// each with 8 added.
struct Int4 {
  const uint8_t* weight;  // [O, I / 2]
  const uint16_t* scale;  // [O, I / 32], bfloat16
  static constexpr int32_t kOffset = 8;

  static int64_t Bytes(int64_t size) { return size / 2; }
  const void* At(int64_t o, int64_t g, int64_t size) const { return weight + o * (size / 2) + g * (kGroup / 2); }
  U8 Group(int64_t o, int64_t g, int64_t size) const {
    const U8Half packed = Load<U8Half>(weight + o * (size / 2) + g * (kGroup / 2));
    const U8Half low = packed & uint8_t{15}, high = packed >> 4;
#if defined(__AVX512F__)
    return (U8)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
#else
    U8 bytes;
    std::memcpy(&bytes, &low, sizeof low);
    std::memcpy(reinterpret_cast<char*>(&bytes) + sizeof low, &high, sizeof high);
    return bytes;
#endif
  }
  F32 Scales(int64_t o, int64_t g, int64_t size) const {
    const uint16_t* two = scale + o * (size / 32) + 2 * g;
    const float low = BFloat16::Widen(two[0]), high = BFloat16::Widen(two[1]);
#if defined(__AVX512F__)
    return (F32)_mm512_mask_broadcastss_ps(_mm512_set1_ps(low), 0xff00, _mm_set_ss(high));
#else
    F32 scales;
    for (int i = 0; i < 16; ++i) scales[i] = i < 8 ? low : high;
    return scales;
#endif
  }
  float Final(int64_t) const { return 1; }
  static constexpr bool kScaledGroups = true;
};

template <class Kind, int kOut, int kRows>
inline void IntegerTile(const Kind& kind, const Int8Rows& rows, int64_t row, int64_t o, float* out, int64_t stride) {
  F32 sums[kRows][kOut] = {};
  for (int64_t g = 0; g < rows.groups; ++g) {
    U8 w[kOut];
    F32 scales[kOut];
    for (int j = 0; j < kOut; ++j) {
      w[j] = kind.Group(o + j, g, rows.size);
      if (Kind::kScaledGroups) scales[j] = kind.Scales(o + j, g, rows.size);
      __builtin_prefetch(static_cast<const char*>(kind.At(o + j, g, rows.size)) + kAhead, 0, 2);
    }
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = (row + r) * rows.groups + g;
      const U8 x = Load<U8>(rows.values.data() + i * kGroup);
      const I32 offset = Load<I32>(rows.sums.data() + i * 16) * -Kind::kOffset;
      for (int j = 0; j < kOut; ++j) {
        const F32 dot = __builtin_convertvector(DotBytes(offset, w[j], x), F32);
        sums[r][j] += (Kind::kScaledGroups ? dot * scales[j] : dot) * rows.scales[i];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float whole[kOut];
    SumEach<kOut>(sums[r], whole);
    for (int j = 0; j < kOut; ++j) out[(row + r) * stride + o + j] = whole[j] * kind.Final(o + j);
  }
}

template <class Kind, int kOut>
void IntegerRows(const Kind& kind, const Int8Rows& rows, int64_t o, float* out, int64_t stride) {
  for (int64_t row = 0; row < rows.count;) {
    const int64_t left = rows.count - row, now = left <= 5 ? left : left < 10 ? (left + 1) / 2 : 5;
    switch (now) {
      case 1: IntegerTile<Kind, kOut, 1>(kind, rows, row, o, out, stride); break;
      case 2: IntegerTile<Kind, kOut, 2>(kind, rows, row, o, out, stride); break;
      case 3: IntegerTile<Kind, kOut, 3>(kind, rows, row, o, out, stride); break;
      case 4: IntegerTile<Kind, kOut, 4>(kind, rows, row, o, out, stride); break;
      default: IntegerTile<Kind, kOut, 5>(kind, rows, row, o, out, stride); break;
    }
    row += now;
  }
}

// Rows, then a weight and its scale each; one result a pair.
template <class Kind>
ffi::Error Integer(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  auto given = arguments.get<ffi::Buffer<ffi::F32>>(0);
  if (!given.has_value()) return given.error();
  const Int8Rows rows(given->typed_data(), given->dimensions()[0], given->dimensions()[1]);
  std::vector<Kind> kinds;
  std::vector<float*> outs;
  std::vector<int64_t> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    auto weight = arguments.get<ffi::AnyBuffer>(2 * i + 1);
    auto scale = arguments.get<ffi::AnyBuffer>(2 * i + 2);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!weight.has_value()) return weight.error();
    if (!scale.has_value()) return scale.error();
    if (!out.has_value()) return out.error();
    kinds.push_back({static_cast<decltype(Kind::weight)>(weight->untyped_data()),
                     static_cast<decltype(Kind::scale)>(scale->untyped_data())});
    outs.push_back(static_cast<float*>((*out)->untyped_data()));
    outputs.push_back(weight->dimensions()[0]);
  }
  OverOutputs(
      outputs, Kind::Bytes(rows.size),
      [&](size_t which, int64_t o) { IntegerRows<Kind, 4>(kinds[which], rows, o, outs[which], outputs[which]); },
      [&](size_t which, int64_t o) { IntegerRows<Kind, 1>(kinds[which], rows, o, outs[which], outputs[which]); });
  return ffi::Error::Success();
}

ffi::Error Int8Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Integer<Int8>(arguments, results);
}

ffi::Error Int4Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Integer<Int4>(arguments, results);
}

// e to the power of x for x <= 0, to 2 units in the last place (Cephes' polynomial); 0 below -87, NaN of NaN.
inline F32 Exp(F32 x) {
  const F32 low = F32{} - 87.0f;
  const I32 tiny = x < low;
  const F32 kept = (F32)(((I32)x & ~tiny));  // 0 where the result will be 0
  const F32 turns = kept * 1.44269504088896341f - 0.5f;
  const I32 n = __builtin_convertvector(turns, I32);  // towards 0, which for x <= 0 rounds x / ln 2 to nearest
  const F32 whole = __builtin_convertvector(n, F32);
  const F32 r = kept - whole * 0.693359375f + whole * 2.12194440e-4f;
  F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const F32 value = p * (F32)((n + 127) << 23);
  return (F32)((I32)value & ~tiny);
}

// What attention reads and writes; one row of the batch is `time` queries of `heads` heads.
struct Attention {
  const float *query, *key, *value;  // [B, T, N, D], [B, T, G, D] twice
  const int32_t* start;              // [B], the position of a row's first query
  float *keys, *values;              // [B, G, S, D]
  float* out;                        // [B, T, N, D]
  int64_t batch, time, heads, groups, dim, slots, window;
  float softcap;

  // The new keys and values of one row and group go to their slots; where those lie past the end, as far back as XLA
  // would put them.
  void Store(int64_t unit) const {
    const int64_t b = unit / groups, g = unit % groups, at = std::clamp<int64_t>(start[b], 0, slots - time);
    for (int64_t t = 0; t < time; ++t) {
      const int64_t from = ((b * time + t) * groups + g) * dim, to = ((b * groups + g) * slots + at + t) * dim;
      std::memcpy(keys + to, key + from, dim * sizeof(float));
      std::memcpy(values + to, value + from, dim * sizeof(float));
    }
  }

  // One query head of one row. `scores` has room for time x slots, padded to whole vectors.
  void Head(int64_t unit, std::vector<float>& scores) const {
    const int64_t b = unit / heads, n = unit % heads, g = n / (heads / groups);
    const float* k = keys + (b * groups + g) * slots * dim;
    const float* v = values + (b * groups + g) * slots * dim;
    const int64_t seen = std::clamp<int64_t>(start[b] + time, 1, slots), width = (slots + 15) / 16 * 16;
    scores.resize(time * width);
    const int64_t first = window ? std::max<int64_t>(0, start[b] + 1 - window) / 4 * 4 : 0;
    for (int64_t s = first; s < seen; s += 4) {
      const int64_t there = std::min<int64_t>(4, seen - s);
      for (int64_t t = 0; t < time; ++t) {
        const float* q = query + ((b * time + t) * heads + n) * dim;
        float four[4];
        if (there == 4) {
          F32 sums[4] = {};
          int64_t i = 0;
          for (; i + 16 <= dim; i += 16) {
            const F32 x = Load<F32>(q + i);
            for (int j = 0; j < 4; ++j) sums[j] += x * Load<F32>(k + (s + j) * dim + i);
          }
          SumFour(sums, four);
          for (; i < dim; ++i)
            for (int j = 0; j < 4; ++j) four[j] += q[i] * k[(s + j) * dim + i];
        } else {
          for (int j = 0; j < there; ++j) {
            F32 sums[4] = {};
            int64_t i = 0;
            for (; i + 16 <= dim; i += 16) sums[0] += Load<F32>(q + i) * Load<F32>(k + (s + j) * dim + i);
            float all[4];
            SumFour(sums, all);  // as above, so that a slot's score is the same whoever stands beside it
            for (; i < dim; ++i) all[0] += q[i] * k[(s + j) * dim + i];
            four[j] = all[0];
          }
        }
        for (int j = 0; j < there; ++j) scores[t * width + s + j] = four[j];
      }
    }
    for (int64_t t = 0; t < time; ++t) {
      const int64_t last = std::clamp<int64_t>(start[b] + t, 0, slots - 1), from = window ? std::max<int64_t>(0, last + 1 - window) : 0;
      float* row = scores.data() + t * width;
      if (softcap != 0)
        for (int64_t s = from; s <= last; ++s) row[s] = softcap * std::tanh(row[s] / softcap);
      float most = row[from];
      for (int64_t s = from; s <= last; ++s) most = row[s] > most || row[s] != row[s] ? row[s] : most;
      // Whole vectors, at places that do not depend on how many queries there are.
      const int64_t begin = from / 16 * 16, end = (last + 16) / 16 * 16;
      for (int64_t s = begin; s < from; ++s) row[s] = -INFINITY;
      for (int64_t s = last + 1; s < end; ++s) row[s] = -INFINITY;
      F32 total = {};
      for (int64_t s = begin; s < end; s += 16) {
        const F32 e = Exp(Load<F32>(row + s) - most);
        total += e;
        std::memcpy(row + s, &e, sizeof e);
      }
      const float scale = 1.0f / Sum(total);
      float* to = out + ((b * time + t) * heads + n) * dim;
      int64_t i = 0;
      for (; i + 64 <= dim; i += 64) Mix<4>(row, v + i, from, last, scale, to + i);
      for (; i + 16 <= dim; i += 16) Mix<1>(row, v + i, from, last, scale, to + i);
      for (; i < dim; ++i) {
        float sum = 0;
        for (int64_t s = from; s <= last; ++s) sum += row[s] * v[s * dim + i];
        to[i] = sum * scale;
      }
    }
  }

  template <int kVectors>
  void Mix(const float* weights, const float* v, int64_t from, int64_t last, float scale, float* to) const {
    F32 sums[kVectors] = {};
    for (int64_t s = from; s <= last; ++s)
      for (int j = 0; j < kVectors; ++j) sums[j] += weights[s] * Load<F32>(v + s * dim + 16 * j);
    for (int j = 0; j < kVectors; ++j) {
      const F32 mixed = sums[j] * scale;
      std::memcpy(to + 16 * j, &mixed, sizeof mixed);
    }
  }

  void Run() const {
    // A handful of scores costs less than to call another thread.
    const bool small = batch * time * heads * (start[0] + time) < 2048;
    for (int64_t unit = 0; unit < batch * groups; ++unit) Store(unit);
    const int64_t units = batch * heads, each = small ? units : std::max<int64_t>(1, units / 64);
    Workers::Get().Run((units + each - 1) / each, [this, units, each](int64_t part) {
      static thread_local std::vector<float> scores;
      for (int64_t unit = part * each; unit < std::min(units, (part + 1) * each); ++unit) Head(unit, scores);
    });
  }
};

ffi::Error AttentionImpl(ffi::Buffer<ffi::F32> query, ffi::Buffer<ffi::F32> key, ffi::Buffer<ffi::F32> value,
                         ffi::Buffer<ffi::S32> start, ffi::Buffer<ffi::F32> keys, ffi::Buffer<ffi::F32> values,
                         ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> new_keys,
                         ffi::ResultBuffer<ffi::F32> new_values, int64_t window, float softcap) {
  const auto q = query.dimensions(), stored = keys.dimensions();
  const int64_t bytes = keys.size_bytes();
  // XLA gives the cache itself where nobody needs the old one; else a place for a copy.
  if (new_keys->typed_data() != keys.typed_data()) std::memcpy(new_keys->typed_data(), keys.typed_data(), bytes);
  if (new_values->typed_data() != values.typed_data())
    std::memcpy(new_values->typed_data(), values.typed_data(), bytes);
  Attention attention{query.typed_data(),      key.typed_data(),         value.typed_data(),
                      start.typed_data(),      new_keys->typed_data(),   new_values->typed_data(),
                      out->typed_data(),       int64_t(q[0]),            int64_t(q[1]),
                      int64_t(q[2]),           int64_t(stored[1]),       int64_t(q[3]),
                      int64_t(stored[2]),      window,                   softcap};
  attention.Run();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_float32, Float32Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_bfloat16, BFloat16Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_int8, Int8Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_int4, Int4Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_attention, AttentionImpl,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap"));

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
