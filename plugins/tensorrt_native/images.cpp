// Takes the image files in. images.inc, which CMake writes, names each of them:
// DELA_IMAGE(symbol, architecture, is PTX, file).
#include "tensorrt_native/images.h"

#define DELA_IMAGE(symbol, architecture, ptx, file)          \
  __asm__(".pushsection .rodata\n"                           \
          ".balign 64\n"                                     \
          ".hidden dela_image_" #symbol "\n"                 \
          ".global dela_image_" #symbol "\n"                 \
          "dela_image_" #symbol ":\n"                        \
          ".incbin \"" file "\"\n"                           \
          ".byte 0\n"                                        \
          ".popsection\n");                                  \
  extern "C" __attribute__((visibility("hidden"))) const char dela_image_##symbol[];
#include "images.inc"
#undef DELA_IMAGE

namespace dela::trt {

const Image kImages[] = {
#define DELA_IMAGE(symbol, architecture, ptx, file) {architecture, ptx, dela_image_##symbol},
#include "images.inc"
#undef DELA_IMAGE
};
const int kImageCount = sizeof(kImages) / sizeof(kImages[0]);
const char* const kImagesDigest = DELA_IMAGES_DIGEST;

}  // namespace dela::trt
