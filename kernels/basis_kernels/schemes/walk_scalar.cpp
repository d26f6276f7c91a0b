// The walk for any CPU.
#include "dispatch.h"

void schemes::walk_scalar(const Job& job, Outcome& outcome) { walk_any(job, outcome); }
