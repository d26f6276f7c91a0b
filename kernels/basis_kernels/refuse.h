// Refusals of the bindings: std::invalid_argument, which Python receives as ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace basis {

// Throws the concatenated parts.
template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Refuses unless `condition` holds; the parts are concatenated only then.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) refuse(parts...);
}

}  // namespace basis
