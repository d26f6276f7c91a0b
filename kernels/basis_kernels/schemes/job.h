// Input and output of one walk: plain data, shared by the translation units of all instruction sets.
#pragma once

#include <atomic>
#include <cstdint>

namespace schemes {

constexpr int max_rank = 512;
constexpr int max_bits = 128;
constexpr int max_orbits = 256;
constexpr int max_orbit_bits = 64;

// Shared with another thread while walks run; `stop` ends them within about 10^5 flips.
struct Monitor {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> flips{0};
};

struct Job {
  int rank;
  int columns[3];            // entries of a factor of A, B, C
  const int8_t* factors[3];  // [rank, columns], entries 0, 1 (GF(2)) or -1, 0, 1 (ternary)
  bool ternary;
  bool symmetric;       // terms are orbits under a.b.c -> b.c.a, over GF(2), at most 256 of at most 64 bits
  uint64_t seed;
  uint64_t flips;       // limit
  uint64_t plus_after;  // flips without a reduction before a plus transition
  int margin;           // plus transitions may raise the rank to best + margin; 0: none
  int target;           // return as soon as the rank is at most this
  Monitor* monitor;
};

struct Outcome {
  int rank;
  int8_t* factors[3];  // [>= job.rank, columns], receives the last scheme found of the least rank
  uint64_t flips;
  uint64_t pluses;
  uint64_t reductions;
  bool dead;  // ended because no flip was possible and no plus allowed
};

using Walk = void (*)(const Job&, Outcome&);

void walk_scalar(const Job& job, Outcome& outcome);
#if defined(__x86_64__)
void walk_avx2(const Job& job, Outcome& outcome);
void walk_avx512(const Job& job, Outcome& outcome);
#endif

}  // namespace schemes
