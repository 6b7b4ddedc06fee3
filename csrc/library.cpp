// Every op's schema: the one public list. B clips, T frames, n embeddings, D features; see
// CONTRIBUTING.md for letters. The namespace is a macro, so that the tests can build the CUDA
// sources for the CPU under a name of their own.
#include "library.h"

#include <torch/csrc/stable/library.h>

PACECORE_DEFINE_LIBRARY(m) { (void)m; }
