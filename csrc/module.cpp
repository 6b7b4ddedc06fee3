// The pybind11 module pacecore._C: what a dispatcher op cannot express.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <stdexcept>
#include <string>

#include "frame_index.h"

#ifdef PACECORE_CUDA_ARCHITECTURES
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = PACECORE_VERSION;
  info["torch_headers"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
#ifdef PACECORE_CUDA_ARCHITECTURES
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = PACECORE_CUDA_ARCHITECTURES;
  int driver = 0;  // stays so without one
  cudaDriverGetVersion(&driver);
  info["cuda_driver"] = std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = "";
  info["cuda_driver"] = py::none();
#endif
  return info;
}

py::array_t<int64_t> frame_indices(int64_t num_frames, int64_t start_frame, int64_t numerator,
                                   int64_t denominator, int boundary, int64_t clip_frames) {
  py::array_t<int64_t> frames(clip_frames);
  pacecore::frame_indices(num_frames, start_frame, numerator, denominator,
                          static_cast<pacecore::Boundary>(boundary), clip_frames,
                          frames.mutable_data());
  return frames;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of pacecore; its ops are under torch.ops.pacecore.";
  m.def("build_info", &build_info, "What this extension was built with.");
  m.def("frame_indices", &frame_indices, py::arg("num_frames"), py::arg("start_frame"),
        py::arg("numerator"), py::arg("denominator"), py::arg("boundary"), py::arg("clip_frames"),
        "Unchecked core of pacecore.frame_indices: (clip_frames,) int64.");
}
