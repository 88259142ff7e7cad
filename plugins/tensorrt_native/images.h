// The kernels' images inside this library.
#pragma once

namespace dela::trt {

struct Image {
  int architecture;  // 89 for sm_89 or compute_89
  bool ptx;          // else a binary
  const void* data;  // PTX ends in a zero
};

// In no order.
extern const Image kImages[];
extern const int kImageCount;
// SHA-256, hexadecimal, over names and contents of the images.
extern const char* const kImagesDigest;

}  // namespace dela::trt
