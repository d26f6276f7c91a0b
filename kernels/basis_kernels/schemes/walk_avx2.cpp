// The walk with 256-bit compares.
#pragma GCC target("bmi,bmi2,popcnt")
#include "dispatch.h"

void schemes::walk_avx2(const Job& job, Outcome& outcome) { walk_any(job, outcome); }
