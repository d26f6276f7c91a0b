// The walk with 512-bit compares.
#pragma GCC target("bmi,bmi2,popcnt")
#include "dispatch.h"

void schemes::walk_avx512(const Job& job, Outcome& outcome) { walk_any(job, outcome); }
