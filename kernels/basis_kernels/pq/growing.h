// Python bindings that grow and improve hash trees.
#pragma once

#include <nanobind/nanobind.h>

void bind_growing(nanobind::module_& m);
