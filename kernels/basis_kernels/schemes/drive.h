// The loop of one walk, for any state with flip(), plus(), find_shared(), keep() and write().
#pragma once

#include "job.h"

namespace {

enum Step { moved, rejected, reduced, dead };

template <class Walker>
void drive(Walker& walker, const schemes::Job& job, schemes::Outcome& outcome) {
  walker.keep();
  uint64_t flips = 0, reported = 0, since = 0;
  outcome.pluses = outcome.reductions = 0;
  outcome.dead = false;
  while (flips < job.flips && walker.best_rank() > job.target) {
    uint64_t block = uint64_t{1} << 16;
    if (job.flips - flips < block) block = job.flips - flips;
    if (job.margin > 0 && job.plus_after - since < block) block = job.plus_after - since;
    Step step = moved;
    uint64_t tries = 0, refused = 0;
    for (; tries < block; ++tries) {
      step = walker.flip();
      if (__builtin_expect(step != moved, 0)) {
        if (step != rejected) break;
        ++refused;
        step = moved;
      }
    }
    flips += tries - refused + (step == reduced);
    since += tries;
    if (step == reduced) {
      ++outcome.reductions;
      walker.find_shared();
      since = 0;
      if (walker.rank() < walker.best_rank()) walker.keep();
    } else if (step == dead || since >= job.plus_after) {
      // If all of many flips are refused, the state has no ternary neighbour: as dead as one without flips.
      const bool stuck = step == dead || (refused == block && block >= 1024);
      if (walker.rank() == walker.best_rank()) walker.keep();  // the last of this rank, not the first: walks spread
      if (walker.rank() < walker.best_rank() + job.margin && !walker.full() && walker.plus()) {
        ++outcome.pluses;
      } else if (stuck) {
        outcome.dead = true;
        break;
      }
      since = 0;
    }
    job.monitor->flips.fetch_add(flips - reported, std::memory_order_relaxed);
    reported = flips;
    if (job.monitor->stop.load(std::memory_order_relaxed)) break;
  }
  job.monitor->flips.fetch_add(flips - reported, std::memory_order_relaxed);
  if (walker.rank() == walker.best_rank()) walker.keep();
  outcome.rank = walker.best_rank();
  outcome.flips = flips;
  walker.write(job, outcome);
}

}  // namespace
