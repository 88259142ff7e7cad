// A strict JSON reader (RFC 8259), for what exported files say of themselves.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dela::capi::json {

// A text that is no JSON, or a value of another kind than asked for; says where or which.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Value {
 public:
  enum class Kind { null, boolean, number, text, list, object };

  // Reads one value and nothing behind it; throws Error. At most 64 levels of lists and objects.
  static Value parse(const std::string& text);

  Kind kind() const { return kind_; }

  // Each throws Error when the value is of another kind; `what` names it in the message.
  double number(const std::string& what) const;
  // A number without a fraction within [lowest, highest].
  long long integer(const std::string& what, long long lowest, long long highest) const;
  const std::string& text(const std::string& what) const;
  const std::vector<Value>& list(const std::string& what) const;

  // The member of an object, or null when there is none; throws Error when this is no object.
  const Value* find(const std::string& key) const;
  // The same; a missing member is an Error.
  const Value& at(const std::string& key) const;

 private:
  friend class Parser;
  void expect(Kind kind, const std::string& what) const;

  Kind kind_ = Kind::null;
  bool boolean_ = false;
  double number_ = 0.0;
  std::string text_;
  std::vector<Value> list_;  // elements, or an object's values
  std::vector<std::string> keys_;
};

}  // namespace dela::capi::json
