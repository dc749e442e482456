// What the parts of the binding share. Addresses come from Python; callers check shapes, types and layouts, and
// nothing is checked here.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

template <class T> T* at(uintptr_t address) { return (T*)address; }

// Weights into layouts and back (module_weights.cpp).
void add_weights(nanobind::module_& m);
