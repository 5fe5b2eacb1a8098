// Products of rows with a weight of floating-point numbers, in tiles that fit the registers.
//
// Decoding multiplies 1 to some dozen rows by every weight of a model, so that its time is that of reading the weights
// once. XLA's own products repack the weights at every call. Here a weight is read as it is stored, `[O, I]` with I
// contiguous, and each load serves as many rows as there are registers for.
//
// The sum behind one element of the result runs in one order, whatever the number of rows or threads: a token's
// numbers are the same to the bit whether it is scored alone or beside others.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "vectors.h"

namespace kljudge __attribute__((visibility("hidden"))) {

// What the rows of a stretch may take of the first cache, and the sums of a part of the second.
constexpr int64_t kFirstCache = 22 << 10;
constexpr int64_t kSums = 160 << 10;

// The outputs of a tile: as many as there are registers for. Each load of a weight serves all rows of the tile, so that
// tall tiles read and widen weights less often.
constexpr int TileOutputs(int64_t rows) { return rows <= 6 ? 4 : 3; }
constexpr int64_t kWholeTiles = 12;  // so many outputs are whole tiles, whatever their rows

// A product in tiles of `kOut` outputs by `kRows` rows, whose sums stay in registers over a stretch of the columns, and
// in `sums` between stretches. The rows of a tile and stretch stay in the first cache while all outputs of a part pass
// by. An operation says what a step over the columns is:
//   count, steps           how many rows and steps there are
//   kMostRows              the rows that a tile has registers for
//   Stretch()              the steps of a stretch
//   Tile<kOut, kRows, kFetch, kWhole>(o, row, from, to, sums)   kFetch: the weights may still be far away; kWhole: the
//                          stretch is all there is, and the tile finishes what it does
//   Finish<kOut>(o, row, sums)   the outputs of one row
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

  int64_t Whole() const { return outputs; }
  void Do(int64_t begin, int64_t end) const { Outputs(*this, begin, end); }
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

// Compiled once, in products.cc: attention multiplies queries by keys as products multiply rows by weights.
extern template void Outputs<Plain<Float32>>(const Plain<Float32>&, int64_t, int64_t);

}  // namespace kljudge
