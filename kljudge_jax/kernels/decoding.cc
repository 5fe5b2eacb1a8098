// Products of a few rows with a large weight matrix, and attention over a cache, for XLA's CPU backend.
//
// Decoding multiplies 1 to some dozen rows by every weight of a model, so that its time is that of reading the weights
// once. XLA's own products repack the weights at every call. Here a weight is read as it is stored, `[O, I]` with I
// contiguous, or, where it is made of integers, in panels of 16 outputs, by all cores, and each load serves as many rows
// as there are registers for.
//
// The sum behind one element of the result runs in one order, whatever the number of rows or threads: a token's
// numbers are the same to the bit whether it is scored alone or beside others.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "xla/ffi/api/ffi.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ffi = xla::ffi;

// Loops over the registers of a tile, which must all be named before the compiler decides where they lie.
#if defined(__clang__)
#define KLJUDGE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KLJUDGE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

// Memory that starts with a cache line: a load across two lines takes twice as long.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U> Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t{64}); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
template <class T>
using Buffer = std::vector<T, Aligned<T>>;

// One register of the processor at hand, and how many there are.
#if defined(__AVX512F__)
constexpr int64_t kBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int64_t kBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int64_t kBytes = 16;
constexpr int kRegisters = 16;
#endif
constexpr int64_t kLanes = kBytes / 4;

typedef float F32 __attribute__((vector_size(kBytes)));
typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef int32_t I32 __attribute__((vector_size(kBytes)));
typedef uint8_t U8 __attribute__((vector_size(kBytes)));

// How far ahead weights are called into the second cache. Four rows are read at a time, which the processor does not
// see through: left to itself a core reads at half of what the memory gives.
constexpr int64_t kAhead = 16 << 10;

// What the rows of a stretch may take of the first cache, and the sums of a part of the second.
constexpr int64_t kFirstCache = 22 << 10;
constexpr int64_t kSums = 160 << 10;

template <class V>
inline V Load(const void* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

template <class V>
inline void Put(void* at, V v) {
  std::memcpy(at, &v, sizeof v);
}

inline float Sum(F32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lanes[kLanes];
  Put(lanes, v);
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
#endif
}

// Calls `f` with each number of a sequence, which it knows when it is compiled.
template <int... kNumbers, class F>
inline void ForEach(std::integer_sequence<int, kNumbers...>, F f) {
  (f(std::integral_constant<int, kNumbers>{}), ...);
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
#elif defined(__AVX2__)
  const __m256 ab = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), cd = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
  const __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
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
    // As above, so that an output's sum is the same whoever stands beside it.
    F32 four[4] = {};
    KLJUDGE_UNROLL
    for (int j = 0; j < kOut; ++j) four[j] = v[j];
    float all[4];
    SumFour(four, all);
    KLJUDGE_UNROLL
    for (int j = 0; j < kOut; ++j) out[j] = all[j];
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
    // A thread that comes late finds no part left, and touches nothing but its own hold of the job. One that lost its
    // processor amid a part needs one to end it.
    for (int spins = 0; job->done.load() < parts; ++spins) spins < kSpins ? Pause() : std::this_thread::yield();
    owned_.store(false);
  }

 // Threads, the caller's included.
  int64_t Count() const { return threads_ + 1; }

 private:
  Workers() {
#if defined(__linux__) || defined(__APPLE__)
    // A process that forks takes no threads along: there the caller does all parts.
    pthread_atfork(nullptr, nullptr, [] { Get().threads_ = 0; });
#endif
    const int64_t cores = std::max<int64_t>(1, Cores());
    try {
      for (; threads_ < cores - 1; ++threads_) std::thread([this] { Serve(); }).detach();
    } catch (const std::system_error&) {  // as many as the system allows
    }
  }

  // What this process may use: KLJUDGE_THREADS, or the processors that it may run on, or what time of them its
  // container grants.
  static int64_t Cores() {
    if (const char* wanted = std::getenv("KLJUDGE_THREADS")) {
      const long count = std::strtol(wanted, nullptr, 10);
      if (count > 0) return count;
    }
    int64_t cores = std::thread::hardware_concurrency();
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    double quota = 0, period = 0;
    if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {  // "max 100000" where there is no limit
      if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;
      std::fclose(file);
    } else if ((file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
      if (std::fscanf(file, "%lf", &quota) != 1) quota = 0;
      std::fclose(file);
      if ((file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
        if (std::fscanf(file, "%lf", &period) != 1) period = 0;
        std::fclose(file);
      }
    }
    if (quota > 0 && period > 0) cores = std::min<int64_t>(cores, std::max<int64_t>(1, std::llround(quota / period)));
#endif
    return cores;
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

// A product in tiles of `kOut` outputs by `kRows` rows, whose sums stay in registers over a stretch of the columns, and
// in `sums` between stretches. The rows of a tile and stretch stay in the first cache while all outputs of a part pass
// by. An operation says what a step over the columns is:
//   count, steps           how many rows and steps there are
//   kMostRows              the rows that a tile has registers for
//   Stretch()              the steps of a stretch
//   Tile<kOut, kRows, kFetch, kWhole>(o, row, from, to, sums)   kFetch: the weights may still be far away; kWhole: the
//                          stretch is all there is, and the tile finishes what it does
//   Finish<kOut>(o, row, sums)   the outputs of one row
inline int64_t TileRows(int64_t left, int64_t most) {
  const int64_t tiles = (left + most - 1) / most;  // of much the same size: one row costs as much as two
  return (left + tiles - 1) / tiles;
}

// The outputs of a tile: as many as there are registers for. Each load of a weight serves all rows of the tile, so that
// tall tiles read and widen weights less often.
constexpr int TileOutputs(int64_t rows) { return rows <= 6 ? 4 : 3; }
constexpr int64_t kWholeTiles = 12;  // so many outputs are whole tiles, whatever their rows

template <class Op, int kRows, bool kFetch, bool kWhole>
inline void TileOf(const Op& op, bool lone, int64_t o, int64_t row, int64_t from, int64_t to, F32* sums) {
  if constexpr (kRows <= Op::kMostRows) {
    if (lone) op.template Tile<1, kRows, kFetch, kWhole>(o, row, from, to, sums);
    else op.template Tile<TileOutputs(kRows), kRows, kFetch, kWhole>(o, row, from, to, sums);
  }
}

template <class Op, bool kFetch, bool kWhole>
inline void OneTile(const Op& op, bool lone, int64_t o, int64_t row, int64_t rows, int64_t from, int64_t to,
                    F32* sums) {
  switch (rows) {
    case 1: TileOf<Op, 1, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 2: TileOf<Op, 2, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 3: TileOf<Op, 3, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 4: TileOf<Op, 4, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 5: TileOf<Op, 5, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 6: TileOf<Op, 6, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 7: TileOf<Op, 7, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    case 8: TileOf<Op, 8, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
    default: TileOf<Op, 9, kFetch, kWhole>(op, lone, o, row, from, to, sums); break;
  }
}

template <class Op, bool kWhole>
void OutputsInStretches(const Op& op, int64_t begin, int64_t end, int64_t stretch) {
  static thread_local Buffer<F32> sums;
  if (!kWhole) sums.assign((end - begin) * op.count, F32{});
  // All outputs of some rows from `o` on, in tiles: do_tile(o, whether it is of one output, sums).
  const auto tiles = [&](int64_t row, int64_t rows, int64_t o, int64_t until, auto do_tile) {
    F32* at = sums.data() + row * (end - begin) + (o - begin) * rows;
    for (int64_t outputs; o < until; o += outputs, at += outputs * rows) {
      outputs = o + TileOutputs(rows) <= until ? TileOutputs(rows) : 1;
      do_tile(o, outputs == 1, at);
    }
  };
  // Where tiles go from one end of a weight to the other, those of all rows take turns, so that it comes from near.
  const int64_t most = TileRows(op.count, Op::kMostRows);
  const int64_t alike = most == op.count || TileOutputs(most) == TileOutputs(1) ? TileOutputs(most) : kWholeTiles;
  const int64_t turn = kWhole ? alike : end - begin;
  for (int64_t o = begin; o < end; o += turn)
    for (int64_t from = 0, to; from < op.steps || (kWhole && from == 0); from = std::max<int64_t>(to, 1)) {
      to = std::min(op.steps, from + stretch);  // 0 where rows are shorter than a step: they too must be finished
      for (int64_t row = 0, rows; row < op.count; row += rows) {
        rows = TileRows(op.count - row, Op::kMostRows);
        tiles(row, rows, o, std::min(end, o + turn), [&](int64_t o, bool lone, F32* at) {
          if (row == 0) OneTile<Op, true, kWhole>(op, lone, o, row, rows, from, to, at);
          else OneTile<Op, false, kWhole>(op, lone, o, row, rows, from, to, at);
        });
      }
    }
  if (kWhole) return;
  for (int64_t row = 0, rows; row < op.count; row += rows) {
    rows = TileRows(op.count - row, Op::kMostRows);
    tiles(row, rows, begin, end, [&](int64_t o, bool lone, const F32* at) {
      for (int64_t r = row; r < row + rows; ++r, at += lone ? 1 : TileOutputs(rows)) {
        if (lone) op.template Finish<1>(o, r, at);
        else if (TileOutputs(rows) == 4) op.template Finish<4>(o, r, at);
        else op.template Finish<3>(o, r, at);
      }
    });
  }
}

template <class Op>
void Outputs(const Op& op, int64_t begin, int64_t end) {
  const int64_t stretch = op.Stretch();
  if (stretch >= op.steps) OutputsInStretches<Op, true>(op, begin, end, stretch);
  else OutputsInStretches<Op, false>(op, begin, end, stretch);
}

// Several products as one job, outputs shared out in parts.
template <class Op>
void RunAll(const std::vector<Op>& ops) {
  std::vector<int64_t> first;  // the number of each product's first part
  int64_t parts = 0;
  for (const Op& op : ops) {
    first.push_back(parts);
    parts += (op.outputs + op.Part() - 1) / op.Part();
  }
  Workers::Get().Run(parts, [&](int64_t number) {
    size_t which = ops.size() - 1;
    while (first[which] > number) --which;
    const int64_t part = ops[which].Part(), begin = (number - first[which]) * part;
    Outputs(ops[which], begin, std::min(ops[which].outputs, begin + part));
  });
}

// Outputs a part: enough bytes that taking one costs nothing beside it, few enough that threads end together; with
// several tiles of rows enough outputs that rows which come from the second cache serve many, and no more sums than
// that cache holds beside them.
inline int64_t PartSize(int64_t outputs, int64_t row_bytes, int64_t count, int64_t most) {
  int64_t wanted = (int64_t{128} << 10) / std::max<int64_t>(row_bytes, 1);
  if (count > 2 * most) wanted = std::min(std::max(wanted, int64_t{32}), kSums / (kBytes * count));
  const auto whole = [](int64_t n) { return (n + kWholeTiles - 1) / kWholeTiles * kWholeTiles; };
  return std::min<int64_t>(whole(std::max<int64_t>(wanted, 1)), whole(outputs));
}

// How each kind of weight is multiplied: a step of `kStep` elements is `kHalves` vectors of operands. Tiles have from
// `kLeastRows` to `kMostRows` rows, and up to `kMostWhole` rows go from one end of a weight to the other.
struct Float32 {
  using Element = float;  // of weights and rows
  using Packed = float;   // of rows as tiles read them
  using Operand = F32;
  static constexpr int64_t kLeastRows = 1, kMostRows = kRegisters >= 32 ? 9 : 3;
  static constexpr int64_t kMostWhole = kRegisters >= 32 ? 12 : 6;
  static constexpr int64_t kStep = kLanes;
  static constexpr int kHalves = 1;
  static inline Operand Operands(const Element* at, int) { return Load<F32>(at); }
  static inline Operand Row(const Packed* at, int) { return Load<F32>(at); }
  static inline F32 Add(F32 sum, Operand weight, Operand row) { return sum + weight * row; }
  static inline float Widen(float x) { return x; }
};

inline float WidenBFloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  return Load<float>(&wide);
}

#if defined(__AVX512BF16__)
struct BFloat16 {
  using Element = uint16_t;
  using Packed = uint16_t;
  using Operand = U32;  // two elements a lane
  static constexpr int64_t kLeastRows = 1, kMostRows = kRegisters >= 32 ? 6 : 3;
  static constexpr int64_t kMostWhole = 2 * kMostRows;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int kHalves = 1;
  static inline Operand Operands(const Element* at, int) { return Load<U32>(at); }
  static inline Operand Row(const Packed* at, int) { return Load<U32>(at); }
  static inline F32 Add(F32 sum, Operand weight, Operand row) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)row);
  }
  static inline float Widen(uint16_t bits) { return WidenBFloat16(bits); }
};
#else
// Without an instruction for it: the even elements of a step in one vector, and the odd ones in another.
struct BFloat16 {
  using Element = uint16_t;
  using Packed = uint16_t;
  using Operand = F32;
  static constexpr int64_t kLeastRows = 1, kMostRows = kRegisters >= 32 ? 6 : 3;
  static constexpr int64_t kMostWhole = 2 * kMostRows;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int kHalves = 2;
  static inline Operand Operands(const Element* at, int half) {
    const U32 both = Load<U32>(at);
    return (F32)(half == 0 ? both << 16 : both & 0xffff0000u);
  }
  static inline Operand Row(const Packed* at, int half) { return Operands(at, half); }
  static inline F32 Add(F32 sum, Operand weight, Operand row) { return sum + weight * row; }
  static inline float Widen(uint16_t bits) { return WidenBFloat16(bits); }
};

// The same for 7 to 9 rows: one tile, for which a weight is widened once, as the rows are when they are packed. They
// take twice the cache then, which costs more than it saves where there are fewer rows or several tiles of them.
struct TallBFloat16 : BFloat16 {
  using Packed = float;
  static constexpr int64_t kLeastRows = 7, kMostRows = kRegisters >= 32 ? 9 : 0;  // none with few registers
  static constexpr int64_t kMostWhole = 0;
  static inline Operand Row(const Packed* at, int half) { return Load<F32>(at + half * kLanes); }
};
#endif

// Rows in the order in which tiles read them: of each tile all rows' first step, then all rows' second one. Each stays
// in the first cache whatever the distance between rows.
template <class Kind>
struct PackedRows {
  const typename Kind::Element* given;
  int64_t count, size, steps;
  Buffer<typename Kind::Packed> values;

  PackedRows(const typename Kind::Element* rows, int64_t count, int64_t size, int64_t most)
      : given(rows), count(count), size(size), steps(size / Kind::kStep), values(count * steps * Kind::kStep) {
    auto* to = values.data();
    for (int64_t row = 0, rows_here; row < count; row += rows_here) {
      rows_here = TileRows(count - row, most);
      for (int64_t step = 0; step < steps; ++step)
        for (int64_t r = row; r < row + rows_here; ++r)
          Pack(rows + r * size + step * Kind::kStep, std::exchange(to, to + Kind::kStep));
    }
  }

  static void Pack(const typename Kind::Element* from, typename Kind::Packed* to) {
    if constexpr (sizeof(*from) == sizeof(*to)) {
      std::memcpy(to, from, Kind::kStep * sizeof(*to));
    } else {
      for (int half = 0; half < Kind::kHalves; ++half) Put(to + half * kLanes, Kind::Operands(from, half));
    }
  }

  const typename Kind::Packed* Tile(int64_t row) const { return values.data() + row * steps * Kind::kStep; }
};

// The product of rows with one weight `[O, size]`.
template <class Kind>
struct Plain {
  const typename Kind::Element* weight;
  const PackedRows<Kind>* rows;
  int64_t outputs;
  float* out;
  int64_t count = rows->count, size = rows->size, steps = rows->steps;

  static constexpr int64_t kMostRows = Kind::kMostRows;

  int64_t Part() const { return PartSize(outputs, size * sizeof(typename Kind::Element), count, kMostRows); }

  int64_t Stretch() const {
    // Few rows are soon done with a weight: it is best read from one end to the other.
    if (count <= Kind::kMostWhole) return steps;
    const int64_t most = kFirstCache / (TileRows(count, kMostRows) * Kind::kStep * sizeof(typename Kind::Packed));
    const int64_t stretches = std::max<int64_t>(1, (steps + most - 1) / most);
    return (steps + stretches - 1) / stretches;  // of much the same size: each loads and stores the sums once
  }

  template <int kOut, int kRows, bool kFetch, bool kWhole>
  inline void Tile(int64_t o, int64_t row, int64_t from, int64_t to, F32* sums) const {
    if constexpr (kRows < Kind::kLeastRows) return;
    F32 kept[kRows][kOut];
    KLJUDGE_UNROLL
    for (int r = 0; r < kRows; ++r)
      KLJUDGE_UNROLL
      for (int j = 0; j < kOut; ++j) kept[r][j] = kWhole ? F32{} : sums[r * kOut + j];
    const typename Kind::Element* w_at = weight + o * size + from * Kind::kStep;
    const typename Kind::Packed* x_at = rows->Tile(row) + from * kRows * Kind::kStep;
    for (int64_t i = from; i < to; ++i, w_at += Kind::kStep, x_at += kRows * Kind::kStep) {
      if constexpr (kFetch) {
        KLJUDGE_UNROLL
        for (int j = 0; j < kOut; ++j) {
          // In stretches what comes next is the same columns of the outputs that follow.
          const auto* next = kWhole ? w_at + j * size + kAhead / sizeof(*w_at) : w_at + (j + 2 * kOut) * size;
          __builtin_prefetch(next, 0, 2);
        }
      }
      KLJUDGE_UNROLL
      for (int half = 0; half < Kind::kHalves; ++half) {
        if constexpr (kRegisters >= 32) {
          typename Kind::Operand w[kOut];
          KLJUDGE_UNROLL
          for (int j = 0; j < kOut; ++j) w[j] = Kind::Operands(w_at + j * size, half);
          KLJUDGE_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const auto x = Kind::Row(x_at + r * Kind::kStep, half);
            KLJUDGE_UNROLL
            for (int j = 0; j < kOut; ++j) kept[r][j] = Kind::Add(kept[r][j], w[j], x);
          }
        } else {
          typename Kind::Operand x[kRows];
          KLJUDGE_UNROLL
          for (int r = 0; r < kRows; ++r) x[r] = Kind::Row(x_at + r * Kind::kStep, half);
          KLJUDGE_UNROLL
          for (int j = 0; j < kOut; ++j) {
            const auto w = Kind::Operands(w_at + j * size, half);
            KLJUDGE_UNROLL
            for (int r = 0; r < kRows; ++r) kept[r][j] = Kind::Add(kept[r][j], w, x[r]);
          }
        }
      }
    }
    KLJUDGE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kWhole) {
        Finish<kOut>(o, row + r, kept[r]);
      } else {
        KLJUDGE_UNROLL
        for (int j = 0; j < kOut; ++j) sums[r * kOut + j] = kept[r][j];
      }
    }
  }

  template <int kOut>
  inline void Finish(int64_t o, int64_t row, const F32* sums) const {
    float whole[kOut];
    SumEach<kOut>(sums, whole);
    for (int j = 0; j < kOut; ++j) {
      for (int64_t i = steps * Kind::kStep; i < size; ++i)
        whole[j] += Kind::Widen(weight[(o + j) * size + i]) * Kind::Widen(rows->given[row * size + i]);
      out[row * outputs + o + j] = whole[j];
    }
  }
};

template <class Kind>
void Multiply(const typename Kind::Element* rows, int64_t count, int64_t size,
              const std::vector<const typename Kind::Element*>& weights, const std::vector<float*>& outs,
              const std::vector<int64_t>& outputs) {
  const PackedRows<Kind> packed(rows, count, size, Plain<Kind>::kMostRows);
  std::vector<Plain<Kind>> ops;
  for (size_t i = 0; i < weights.size(); ++i) ops.push_back({weights[i], &packed, outputs[i], outs[i]});
  RunAll(ops);
}

// Rows, then weights; one result a weight.
template <class Kind>
ffi::Error Products(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  auto rows = arguments.get<ffi::AnyBuffer>(0);
  if (!rows.has_value()) return rows.error();
  std::vector<const typename Kind::Element*> weights;
  std::vector<float*> outs;
  std::vector<int64_t> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    auto weight = arguments.get<ffi::AnyBuffer>(i + 1);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!weight.has_value()) return weight.error();
    if (!out.has_value()) return out.error();
    weights.push_back(static_cast<const typename Kind::Element*>(weight->untyped_data()));
    outs.push_back(static_cast<float*>((*out)->untyped_data()));
    outputs.push_back(weight->dimensions()[0]);
  }
  Multiply<Kind>(static_cast<const typename Kind::Element*>(rows->untyped_data()), rows->dimensions()[0],
                 rows->dimensions()[1], weights, outs, outputs);
  return ffi::Error::Success();
}

ffi::Error Float32Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Products<Float32>(arguments, results);
}

ffi::Error BFloat16Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
#if !defined(__AVX512BF16__)
  const auto rows = arguments.get<ffi::AnyBuffer>(0);
  const int64_t count = rows.has_value() ? rows->dimensions()[0] : 0;
  if (count >= TallBFloat16::kLeastRows && count <= TallBFloat16::kMostRows)
    return Products<TallBFloat16>(arguments, results);
#endif
  return Products<BFloat16>(arguments, results);
}

constexpr int64_t kGroup = 64;    // columns of a row of numbers that are rounded together
constexpr int64_t kColumns = 32;  // columns of a weight that are stored together: a block
constexpr int64_t kPanel = 16;    // outputs side by side in a panel

// Whether products take weights as unsigned bytes: then those without a minimum come with 128 added (fewer than 8 bits
// are moved up in their bytes, so that 128 is their middle), and the rows' sums make up for it.
#if defined(__AVX512VNNI__)
constexpr bool kUnsigned = true;
#else
constexpr bool kUnsigned = false;
#endif

// Rows rounded to int8 in groups of 64 that share a scale: what weights of integers are multiplied with. A row ends in
// zeros up to a whole block of 32. Of each tile of rows all rows' first 32 columns come first, then all rows' next ones.
struct Int8Rows {
  // What of a block is the same for all weights: its scale, what products with weights that have no minimum begin with,
  // and the products with minima.
  struct Shared {
    float step;
    int32_t begin[2], begin_all;  // of 16 columns each, and of all 32
    float sum;                    // of 32 columns, scaled
  };
  int64_t count, size, blocks;
  Buffer<int8_t> values;  // [blocks, rows of the tile, 32] a tile
  Buffer<Shared> shared;  // [blocks, rows of the tile] a tile

  Int8Rows(const float* rows, int64_t count, int64_t size, int64_t blocks, int64_t most)
      : count(count), size(size), blocks(blocks), values(count * blocks * kColumns), shared(count * blocks) {
    std::vector<int64_t> tile(count), tall(count);  // of the tile that a row is in: its first row, and how many it has
    for (int64_t row = 0, rows_here; row < count; row += rows_here) {
      rows_here = TileRows(count - row, most);
      std::fill_n(tile.begin() + row, rows_here, row);
      std::fill_n(tall.begin() + row, rows_here, rows_here);
    }
    const int64_t groups = (blocks + 1) / 2, each = std::max<int64_t>(1, count * groups / 16);
    Workers::Get().Run((count * groups + each - 1) / each, [&](int64_t part) {
      for (int64_t i = part * each; i < std::min(count * groups, (part + 1) * each); ++i) {
        const int64_t row = i / groups;
        Round(rows + row * size, i % groups, tile[row] * blocks + row - tile[row], tall[row]);
      }
    });
  }

  // One group of a row, whose block `b` goes to place `first + b * apart`.
  void Round(const float* row, int64_t group, int64_t first, int64_t apart) {
    const int64_t from = group * kGroup, there = std::clamp<int64_t>(size - from, 0, kGroup);
    alignas(64) float x[kGroup] = {};
    std::memcpy(x, row + from, there * sizeof(float));
    F32 mosts = {};
    I32 fit = I32{} - 1;
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      const F32 magnitude = (F32)(Load<I32>(x + j) & 0x7fffffff);
      mosts = magnitude > mosts ? magnitude : mosts;
      fit &= magnitude < INFINITY;
    }
    float most = 0;
    bool all_fit = true;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      most = std::max(most, mosts[lane]);
      all_fit &= fit[lane] != 0;
    }
    // What is no number makes the whole row none, as it does in a float product.
    // Where the largest is next to nothing, the inverse would be past all numbers.
    const float inverse = all_fit && most > 1e-36f ? 127 / most : 0;
    alignas(64) int32_t rounded[kGroup];
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      // A number this large has no places after the point: the sum is rounded to nearest, and its last bits are it.
      const F32 large = Load<F32>(x + j) * inverse + 0x1.8p23f;
      Put(rounded + j, all_fit ? (I32)large - 0x4b400000 : I32{});
    }
    for (int64_t block = 2 * group; block < std::min(blocks, 2 * group + 2); ++block) {
      const int64_t at = first + block * apart;
      const int32_t* here = rounded + (block - 2 * group) * kColumns;
      int8_t* to = values.data() + at * kColumns;
      int32_t sums[2] = {};
      for (int64_t j = 0; j < kColumns; ++j) to[j] = static_cast<int8_t>(here[j]);
      for (int half = 0; half < 2; ++half)
        for (int64_t j = 0; j < kColumns / 2; ++j) sums[half] += here[half * kColumns / 2 + j];
      Shared& all = shared[at];
      all.step = all_fit ? most / 127 : NAN;
      for (int half = 0; half < 2; ++half) all.begin[half] = kUnsigned ? -128 * sums[half] : 0;
      all.begin_all = all.begin[0] + all.begin[1];
      all.sum = all.step * (sums[0] + sums[1]);
    }
  }
};

// sum + weights by rows, four neighbours a lane.
inline I32 DotBytes(I32 sum, U8 weights, U8 rows) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)rows);
#elif defined(__AVX512BW__)
  // Magnitudes are 128 and 127 at most, so that two products fit 16 bits.
  const __m512i w = (__m512i)weights, x = (__m512i)rows;
  const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
  return (I32)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i w = (__m256i)weights, x = (__m256i)rows;
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return (I32)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (I32)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)rows);
#else
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 4 * lane; i < 4 * lane + 4; ++i) sum[lane] += int32_t(int8_t(weights[i])) * int32_t(int8_t(rows[i]));
  return sum;
#endif
}

// As many numbers in float16 as a register has lanes.
inline F32 WidenFloat16(const uint16_t* at) {
#if defined(__AVX512F__)
  return (F32)_mm512_cvtph_ps(Load<__m256i>(at));
#elif defined(__AVX2__) && defined(__F16C__)
  return (F32)_mm256_cvtph_ps(Load<__m128i>(at));
#else
  U32 bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = at[i];
  const U32 magnitude = bits & 0x7fff;
  // The exponent's bias differs by 112. Below its least number, float16 counts in steps of 2^-24; XLA has the processor
  // take float32 numbers so small for 0, so that no product of them may be asked for. Its largest exponent is no number.
  const U32 small = (U32)(__builtin_convertvector((I32)magnitude, F32) * 0x1p-24f);
  const U32 large = (magnitude << 13) + (112u << 23), tiny = (U32)(magnitude < 0x400), none = (U32)(magnitude >= 0x7c00);
  return (F32)((small & tiny) | (large & ~tiny) | (none & 0x7f800000) | (bits & 0x8000) << 16);
#endif
}

// A weight `[outputs, size]` of integers, in panels of 16 outputs. In a panel four neighbouring bytes of all its
// outputs are 64 bytes that lie together, so that a register's lanes are outputs: nothing is summed across lanes, and a
// scale is met once for 32 columns of as many outputs as there are lanes. What the bytes hold, kernels/quantize.py says.
struct Blocks {
  const uint8_t* values;    // [panels, steps, 16, 4]
  const uint16_t* scale;    // float16 [panels, blocks, 16]; two for each block of 6 bits
  const uint16_t* minimum;  // the same, or none
  int64_t bits;             // of a value
  const Int8Rows* rows;
  int64_t outputs;
  float* out;
  int64_t blocks = rows->blocks;

  static constexpr int Each(int bits) { return bits == 6 ? 16 : 32; }  // columns that share a scale

  static constexpr int64_t kMostRows = kRegisters >= 32 ? 9 : 4;
  // Vectors of outputs a tile: with registers for two, a number of a row is loaded once for two products.
  static constexpr int64_t kWide = kRegisters >= 32 ? 2 : 1;
  static constexpr int64_t kVectors = kPanel / kLanes;  // of a panel

  int64_t PanelBytes() const { return blocks * kColumns * kPanel * bits / 8; }
  int64_t Tiles() const { return ((outputs + kPanel - 1) / kPanel * kVectors + kWide - 1) / kWide; }
  // Tiles of outputs a part, whole panels: enough bytes that taking one costs nothing beside it, few enough that threads
  // end together.
  int64_t Part() const {
    const int64_t whole = std::max<int64_t>(1, kVectors / kWide), bytes = PanelBytes() * kWide * whole / kVectors;
    return whole * std::max<int64_t>(1, (int64_t{64} << 10) / std::max<int64_t>(1, bytes));
  }

  // Each byte of a vector times 2 to the power of `kPlaces`, which may be negative, under a mask that every byte has.
  template <int kPlaces, uint8_t kMask>
  static inline U8 Moved(U8 bytes) {
    U32 moved = (U32)bytes;
    if constexpr (kPlaces > 0) moved = moved << kPlaces;
    if constexpr (kPlaces < 0) moved = moved >> -kPlaces;
    return (U8)moved & kMask;
  }

  // Four neighbouring columns of a block at `w`, number `kQuad` of its eight: as they are where they have a minimum,
  // else in the upper bits of bytes that hold 128 more or, where products are of signed bytes, what they stand for.
  template <int kBits, bool kMinimum, int kQuad>
  static inline U8 Quad(const uint8_t* w) {
    constexpr int64_t kStep = 4 * kPanel;
    constexpr uint8_t kSign = kMinimum || kUnsigned ? 0 : 0x80;
    if constexpr (kBits == 8) {
      return Load<U8>(w + kQuad * kStep) ^ uint8_t{kUnsigned ? 0x80 : 0};
    } else {
      constexpr int kUp = kMinimum ? 0 : 8 - kBits, kAbove = kBits - 4, kShared = kAbove ? 8 / kAbove : 1;
      const U8 half = Load<U8>(w + kQuad % 4 * kStep);
      U8 value = Moved<kUp - (kQuad < 4 ? 0 : 4), uint8_t(15 << kUp)>(half);
      if constexpr (kAbove > 0) {
        const U8 above = Load<U8>(w + (4 + kQuad / kShared) * kStep);
        value |= Moved<kUp + 4 - kQuad % kShared * kAbove, uint8_t(((1 << kAbove) - 1) << (kUp + 4))>(above);
      }
      return value ^ kSign;
    }
  }

  // Vectors `number * kWide` and on of the outputs, for `kRows` rows.
  template <int kBits, bool kMinimum, int kRows>
  void Tile(int64_t number, int64_t first) const {
    constexpr bool kBegin = kUnsigned && !kMinimum;
    constexpr int kEach = Each(kBits), kParts = kColumns / kEach, kQuads = kEach / 4;
    constexpr float kUnit = kMinimum ? 1.0f : 1.0f / (1 << (8 - kBits));  // of a byte that `Quad` gives
    F32 kept[kRows][kWide] = {};
    const uint8_t* w[kWide];
    const uint16_t *s[kWide], *m[kWide];
    for (int j = 0; j < kWide; ++j) {
      // Where there is no vector any more, the last one once again.
      const int64_t vector = std::min(number * kWide + j, (outputs + kPanel - 1) / kPanel * kVectors - 1);
      const int64_t panel = vector / kVectors, lane = vector % kVectors * kLanes;
      const int64_t at_scale = panel * blocks * kParts * kPanel + lane;
      w[j] = values + panel * PanelBytes() + 4 * lane;
      s[j] = scale + at_scale;
      if constexpr (kMinimum) m[j] = minimum + at_scale;
    }
    const int8_t* x = rows->values.data() + first * blocks * kColumns;
    const Int8Rows::Shared* shared = rows->shared.data() + first * blocks;
    for (int64_t block = 0; block < blocks; ++block, x += kRows * kColumns, shared += kRows) {
      ForEach(std::make_integer_sequence<int, kParts>{}, [&](auto part) {
        I32 dots[kRows][kWide];
        KLJUDGE_UNROLL
        for (int r = 0; r < kRows; ++r)
          KLJUDGE_UNROLL
          for (int j = 0; j < kWide; ++j)
            dots[r][j] = kBegin ? I32{} + (kParts == 2 ? shared[r].begin[part] : shared[r].begin_all) : I32{};
        ForEach(std::make_integer_sequence<int, kQuads>{}, [&](auto quad) {
          constexpr int kQuad = decltype(part)::value * kQuads + decltype(quad)::value;
          U8 bytes[kWide];
          KLJUDGE_UNROLL
          for (int j = 0; j < kWide; ++j) bytes[j] = Quad<kBits, kMinimum, kQuad>(w[j]);
          KLJUDGE_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const U8 four = (U8)(I32{} + Load<int32_t>(x + r * kColumns + 4 * kQuad));
            KLJUDGE_UNROLL
            for (int j = 0; j < kWide; ++j) dots[r][j] = DotBytes(dots[r][j], bytes[j], four);
          }
        });
        KLJUDGE_UNROLL
        for (int j = 0; j < kWide; ++j) {
          const F32 scales = WidenFloat16(s[j]) * kUnit;
          KLJUDGE_UNROLL
          for (int r = 0; r < kRows; ++r)
            kept[r][j] += __builtin_convertvector(dots[r][j], F32) * (scales * shared[r].step);
          s[j] += kPanel;
          if constexpr (kMinimum) {
            const F32 least = WidenFloat16(m[j]);
            KLJUDGE_UNROLL
            for (int r = 0; r < kRows; ++r) kept[r][j] += least * shared[r].sum;
            m[j] += kPanel;
          }
        }
      });
      KLJUDGE_UNROLL
      for (int j = 0; j < kWide; ++j) {
        KLJUDGE_UNROLL
        for (int line = 0; line < kBits; ++line)
          __builtin_prefetch(reinterpret_cast<const char*>(w[j]) + kAhead / 4 + line * 4 * kPanel, 0, 2);
        w[j] += kBits * 4 * kPanel;
      }
    }
    for (int j = 0; j < kWide; ++j) {
      const int64_t o = (number * kWide + j) * kLanes, there = std::min(outputs - o, kLanes);
      if (there <= 0) break;
      for (int r = 0; r < kRows; ++r) std::memcpy(out + (first + r) * outputs + o, &kept[r][j], there * sizeof(float));
    }
  }

  template <int kBits, bool kMinimum, int kRows>
  void OfRows(int64_t number, int64_t row, int64_t tall) const {
    if constexpr (kRows < kMostRows) {
      if (tall != kRows) return OfRows<kBits, kMinimum, kRows + 1>(number, row, tall);
    }
    Tile<kBits, kMinimum, kRows>(number, row);
  }

  template <int kBits, bool kMinimum>
  void OfForm(int64_t number) const {
    for (int64_t row = 0, tall; row < rows->count; row += tall) {
      tall = TileRows(rows->count - row, kMostRows);
      OfRows<kBits, kMinimum, 1>(number, row, tall);
    }
  }

  void Outputs(int64_t number) const {
    switch (bits) {
      case 4: return minimum ? OfForm<4, true>(number) : OfForm<4, false>(number);
      case 5: return minimum ? OfForm<5, true>(number) : OfForm<5, false>(number);
      case 6: return OfForm<6, false>(number);
      default: return OfForm<8, false>(number);
    }
  }
};

// Rows, then of each weight its values, scale and minimum; one result a weight. `forms` has a number for each weight:
// its bits, plus 16 where there is a minimum.
ffi::Error BlocksImpl(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Span<const int64_t> forms) {
  auto given = arguments.get<ffi::Buffer<ffi::F32>>(0);
  if (!given.has_value()) return given.error();
  std::vector<Blocks> ops;
  std::vector<int64_t> first;  // the number of each weight's first part
  std::unique_ptr<Int8Rows> rows;
  int64_t parts = 0;
  size_t next = 1;
  for (size_t i = 0; i < results.size(); ++i) {
    auto values = arguments.get<ffi::AnyBuffer>(next++);
    auto scale = arguments.get<ffi::AnyBuffer>(next++);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!values.has_value()) return values.error();
    if (!scale.has_value()) return scale.error();
    if (!out.has_value()) return out.error();
    const uint16_t* minimum = nullptr;
    if (forms[i] & 16) {
      auto least = arguments.get<ffi::AnyBuffer>(next++);
      if (!least.has_value()) return least.error();
      minimum = static_cast<const uint16_t*>(least->untyped_data());
    }
    const int64_t bits = forms[i] & 15, blocks = scale->dimensions()[1] * Blocks::Each(bits) / kColumns;
    const bool known = bits == 4 || bits == 5 || (!minimum && (bits == 6 || bits == 8));
    if (!known || (rows && blocks != rows->blocks))
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, "weights of a form or a size that is not known here");
    if (!rows)
      rows = std::make_unique<Int8Rows>(given->typed_data(), given->dimensions()[0], given->dimensions()[1],
                                        blocks, Blocks::kMostRows);
    ops.push_back({static_cast<const uint8_t*>(values->untyped_data()),
                   static_cast<const uint16_t*>(scale->untyped_data()), minimum, bits, rows.get(),
                   (*out)->dimensions()[1], static_cast<float*>((*out)->untyped_data())});
    first.push_back(parts);
    parts += (ops.back().Tiles() + ops.back().Part() - 1) / ops.back().Part();
  }
  Workers::Get().Run(parts, [&](int64_t number) {
    size_t which = ops.size() - 1;
    while (first[which] > number) --which;
    const Blocks& op = ops[which];
    const int64_t begin = (number - first[which]) * op.Part();
    for (int64_t tile = begin; tile < std::min(op.Tiles(), begin + op.Part()); ++tile) op.Outputs(tile);
  });
  return ffi::Error::Success();
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
  void StoreNew(int64_t unit) const {
    const int64_t b = unit / groups, g = unit % groups, at = std::clamp<int64_t>(start[b], 0, slots - time);
    for (int64_t t = 0; t < time; ++t) {
      const int64_t from = ((b * time + t) * groups + g) * dim, to = ((b * groups + g) * slots + at + t) * dim;
      std::memcpy(keys + to, key + from, dim * sizeof(float));
      std::memcpy(values + to, value + from, dim * sizeof(float));
    }
  }

  // Some queries of one row that read the same keys and values: number q is head q % shared of the group, at time
  // q / shared. Each key and value that comes from memory serves them all.
  void Queries(int64_t b, int64_t g, int64_t begin, int64_t end) const {
    static thread_local Buffer<float> rows, scores;
    const int64_t shared = heads / groups, count = end - begin, width = (slots + kLanes - 1) / kLanes * kLanes;
    const float* k = keys + (b * groups + g) * slots * dim;
    const float* v = values + (b * groups + g) * slots * dim;
    rows.resize(count * dim);
    scores.resize(count * width);
    const auto place = [&](int64_t q) { return ((b * time + q / shared) * heads + g * shared + q % shared) * dim; };
    for (int64_t q = begin; q < end; ++q)
      std::memcpy(rows.data() + (q - begin) * dim, query + place(q), dim * sizeof(float));

    // The slots that a query sees, both ends included.
    const auto last = [&](int64_t q) { return std::clamp<int64_t>(start[b] + q / shared, 0, slots - 1); };
    const auto first = [&](int64_t q) { return window ? std::max<int64_t>(0, last(q) + 1 - window) : 0; };
    const PackedRows<Float32> packed(rows.data(), count, dim, Plain<Float32>::kMostRows);
    const Plain<Float32> product{k, &packed, width, scores.data()};
    const int64_t seen = last(end - 1) + 1;
    for (int64_t s = first(begin) / 4 * 4; s < seen; s += 60) Outputs(product, s, std::min(seen, s + 60));

    for (int64_t q = begin; q < end; ++q) Softmax(scores.data() + (q - begin) * width, first(q), last(q));

    for (int64_t row = 0, now; row < count; row += now) {
      now = TileRows(count - row, kMixed);
      const float* weights = scores.data() + row * width;
      int64_t froms[kMixed], lasts[kMixed];
      float* to[kMixed];
      for (int64_t r = 0; r < now; ++r) {
        froms[r] = first(begin + row + r);
        lasts[r] = last(begin + row + r);
        to[r] = out + place(begin + row + r);
      }
      int64_t i = 0;
      for (; i + kBlock * kLanes <= dim; i += kBlock * kLanes)
        MixRows<kBlock>(weights, width, v + i, now, froms, lasts, to, i);
      for (; i + kLanes <= dim; i += kLanes) MixRows<1>(weights, width, v + i, now, froms, lasts, to, i);
      for (; i < dim; ++i)
        for (int64_t r = 0; r < now; ++r) {
          float sum = 0;
          for (int64_t s = froms[r]; s <= lasts[r]; ++s) sum += weights[r * width + s] * v[s * dim + i];
          to[r][i] = sum;
        }
    }
  }

  // Scores of slots `from` to `last` become weights.
  void Softmax(float* row, int64_t from, int64_t last) const {
    if (softcap != 0)
      for (int64_t s = from; s <= last; ++s) row[s] = softcap * std::tanh(row[s] / softcap);
    float most = row[from];
    for (int64_t s = from; s <= last; ++s) most = row[s] > most || row[s] != row[s] ? row[s] : most;
    // Whole vectors, at places that do not depend on how many queries there are.
    const int64_t begin = from / kLanes * kLanes, end = (last + kLanes) / kLanes * kLanes;
    for (int64_t s = begin; s < from; ++s) row[s] = -INFINITY;
    for (int64_t s = last + 1; s < end; ++s) row[s] = -INFINITY;
    F32 total = {};
    for (int64_t s = begin; s < end; s += kLanes) {
      const F32 e = Exp(Load<F32>(row + s) - most);
      total += e;
      Put(row + s, e);
    }
    const float scale = 1.0f / Sum(total);
    for (int64_t s = begin; s < end; s += kLanes) Put(row + s, Load<F32>(row + s) * scale);
  }

  static constexpr int64_t kMixed = 6;                            // queries whose sums are in registers at a time
  static constexpr int kBlock = kRegisters >= 32 ? 4 : 2;  // and the vectors of each

  // Sums of values by weights, `kVectors` vectors of each of some queries: over the slots that all of them see
  // together, over others one by one, and for each query in the order of the slots.
  template <int kVectors>
  void MixRows(const float* weights, int64_t width, const float* v, int64_t count, const int64_t* froms,
               const int64_t* lasts, float* const* to, int64_t i) const {
    F32 sums[kMixed * kVectors] = {};
    int64_t begin = *std::max_element(froms, froms + count), end = *std::min_element(lasts, lasts + count) + 1;
    if (begin > end) begin = end = 0;
    if (begin == end) begin = end = *std::min_element(froms, froms + count);
    for (int64_t r = 0; r < count; ++r)
      Mix<1, kVectors>(weights + r * width, width, v, froms[r], begin, sums + r * kVectors);
    switch (count) {
      case 1: Mix<1, kVectors>(weights, width, v, begin, end, sums); break;
      case 2: Mix<2, kVectors>(weights, width, v, begin, end, sums); break;
      case 3: Mix<3, kVectors>(weights, width, v, begin, end, sums); break;
      case 4: Mix<4, kVectors>(weights, width, v, begin, end, sums); break;
      case 5: Mix<5, kVectors>(weights, width, v, begin, end, sums); break;
      default: Mix<6, kVectors>(weights, width, v, begin, end, sums); break;
    }
    for (int64_t r = 0; r < count; ++r) {
      Mix<1, kVectors>(weights + r * width, width, v, std::max(end, froms[r]), lasts[r] + 1, sums + r * kVectors);
      for (int j = 0; j < kVectors; ++j) Put(to[r] + i + j * kLanes, sums[r * kVectors + j]);
    }
  }

  template <int kRows, int kVectors>
  void Mix(const float* weights, int64_t width, const float* v, int64_t from, int64_t to, F32* sums) const {
    if (from >= to) return;
    F32 kept[kRows][kVectors];
    KLJUDGE_UNROLL
    for (int r = 0; r < kRows; ++r)
      KLJUDGE_UNROLL
      for (int j = 0; j < kVectors; ++j) kept[r][j] = sums[r * kVectors + j];
    for (int64_t s = from; s < to; ++s) {
      F32 value[kVectors];
      KLJUDGE_UNROLL
      for (int j = 0; j < kVectors; ++j) value[j] = Load<F32>(v + s * dim + j * kLanes);
      KLJUDGE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float weight = weights[r * width + s];
        KLJUDGE_UNROLL
        for (int j = 0; j < kVectors; ++j) kept[r][j] += value[j] * weight;
      }
    }
    KLJUDGE_UNROLL
    for (int r = 0; r < kRows; ++r)
      KLJUDGE_UNROLL
      for (int j = 0; j < kVectors; ++j) sums[r * kVectors + j] = kept[r][j];
  }

  void Run() const {
    for (int64_t unit = 0; unit < batch * groups; ++unit) StoreNew(unit);
    // Few enough queries at a time that their scores stay in the second cache.
    const int64_t each_group = time * (heads / groups), longest = *std::max_element(start, start + batch) + time;
    int64_t pieces = (each_group + kQueries - 1) / kQueries;
    while (batch * groups * pieces < Workers::Get().Count() && pieces < each_group) ++pieces;
    const int64_t each = (each_group + pieces - 1) / pieces, parts = batch * groups * pieces;
    const auto part = [=](int64_t number) {
      const int64_t unit = number / pieces, begin = number % pieces * each, end = std::min(each_group, begin + each);
      if (begin < end) Queries(unit / groups, unit % groups, begin, end);
    };
    // A handful of scores costs less than to call another thread.
    if (batch * time * heads * longest < 2048)
      for (int64_t number = 0; number < parts; ++number) part(number);
    else Workers::Get().Run(parts, part);
  }

  static constexpr int64_t kQueries = 18;
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_blocks, BlocksImpl,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>("forms"));
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
