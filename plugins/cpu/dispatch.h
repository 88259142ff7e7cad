// Runtime choice of instruction set. DELA_DISPATCH(f, args...) calls dela::<isa>::f.
#pragma once

namespace dela {

enum class Isa { portable = 0, v2 = 1, v3 = 2, v4 = 3, neon = 4 };

Isa active_isa();

}  // namespace dela

#if defined(DELA_HAS_v2)
#define DELA_DISPATCH(function, ...)                                                 \
  (::dela::active_isa() == ::dela::Isa::v4   ? ::dela::v4::function(__VA_ARGS__)     \
   : ::dela::active_isa() == ::dela::Isa::v3 ? ::dela::v3::function(__VA_ARGS__)     \
                                             : ::dela::v2::function(__VA_ARGS__))
// Declares one function in the namespace of every instruction set.
#define DELA_DECLARE(signature)    \
  namespace dela {                 \
  namespace v2 { signature; }      \
  namespace v3 { signature; }      \
  namespace v4 { signature; }      \
  }
#elif defined(DELA_HAS_neon)
#define DELA_DISPATCH(function, ...) (::dela::neon::function(__VA_ARGS__))
#define DELA_DECLARE(signature) \
  namespace dela {              \
  namespace neon { signature; } \
  }
#else
#define DELA_DISPATCH(function, ...) (::dela::portable::function(__VA_ARGS__))
#define DELA_DECLARE(signature)   \
  namespace dela {                \
  namespace portable { signature; } \
  }
#endif
