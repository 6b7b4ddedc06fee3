// The dispatcher namespace of the ops. One name, changed only by the test build that runs the CUDA
// sources on the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef PACECORE_NAMESPACE
#define PACECORE_NAMESPACE pacecore
#endif
#ifndef PACECORE_CUDA_KEY
#define PACECORE_CUDA_KEY CUDA  // dispatch key under which csrc/cuda registers its kernels
#endif

// One more macro level each, so that the names above are expanded before torch's macros paste them.
#define PACECORE_LIBRARY_(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define PACECORE_DEFINE_LIBRARY(m) PACECORE_LIBRARY_(PACECORE_NAMESPACE, m)
#define PACECORE_LIBRARY_IMPL_(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define PACECORE_REGISTER_CPU(m) PACECORE_LIBRARY_IMPL_(PACECORE_NAMESPACE, CPU, m)
#define PACECORE_REGISTER_CUDA(m) PACECORE_LIBRARY_IMPL_(PACECORE_NAMESPACE, PACECORE_CUDA_KEY, m)
