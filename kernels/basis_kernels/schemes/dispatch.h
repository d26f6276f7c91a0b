// Chooses the walker's ring, word and capacity for a job; included once per instruction set.
#pragma once

#include "symmetric.h"
#include "walk.h"

namespace {

template <class Walker>
void start(const schemes::Job& job, schemes::Outcome& outcome) {
  Walker walker(job);
  drive(walker, job, outcome);
}

template <class Ring>
void walk_ring(const schemes::Job& job, schemes::Outcome& outcome) {
  const int rows = job.rank + job.margin;
  if (rows <= 64) return start<Walker<Ring, 1>>(job, outcome);
  if (rows <= 128) return start<Walker<Ring, 2>>(job, outcome);
  if (rows <= 256) return start<Walker<Ring, 4>>(job, outcome);
  start<Walker<Ring, 8>>(job, outcome);
}

template <class Word>
void walk_orbits(const schemes::Job& job, schemes::Outcome& outcome) {
  if (job.rank + job.margin <= 64) return start<SymmetricWalker<Word, 1>>(job, outcome);
  start<SymmetricWalker<Word, 4>>(job, outcome);
}

inline void walk_any(const schemes::Job& job, schemes::Outcome& outcome) {
  int bits = 0;
  for (int columns : job.columns) bits = columns > bits ? columns : bits;
  if (job.symmetric) {
    if (bits <= 32) return walk_orbits<uint32_t>(job, outcome);
    return walk_orbits<uint64_t>(job, outcome);
  }
  if (job.ternary) {
    if (bits <= 16) return walk_ring<Ternary<uint32_t>>(job, outcome);
    if (bits <= 32) return walk_ring<Ternary<uint64_t>>(job, outcome);
    return walk_ring<Ternary<Wide>>(job, outcome);
  }
  if (bits <= 16) return walk_ring<Binary<uint16_t>>(job, outcome);
  if (bits <= 32) return walk_ring<Binary<uint32_t>>(job, outcome);
  if (bits <= 64) return walk_ring<Binary<uint64_t>>(job, outcome);
  return walk_ring<Binary<Wide>>(job, outcome);
}

}  // namespace
