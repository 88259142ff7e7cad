#include "capi/json.h"

#include <cmath>
#include <locale>
#include <sstream>

namespace dela::capi::json {
namespace {

constexpr int kDeepest = 64;
const char* const kNames[] = {"null", "true or false", "a number", "a text", "a list", "an object"};

void append_utf8(std::string* out, unsigned code) {
  const auto put = [out](unsigned byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

}  // namespace

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Value whole() {
    Value value = read(0);
    skip_blanks();
    if (at_ != text_.size()) refuse("the end of the text");
    return value;
  }

 private:
  [[noreturn]] void refuse(const char* expected) const {
    throw Error("letter " + std::to_string(at_ + 1) + " of the JSON text is not " + expected);
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char letter) {
    if (at_ >= text_.size() || text_[at_] != letter) return false;
    ++at_;
    return true;
  }
  void skip_blanks() {
    while (at_ < text_.size() && std::string(" \t\n\r").find(text_[at_]) != std::string::npos) ++at_;
  }
  void word(const char* letters) {
    for (const char* letter = letters; *letter != 0; ++letter) {
      if (!take(*letter)) refuse(letters);
    }
  }

  Value read(int depth) {
    if (depth > kDeepest) refuse("within 64 levels of lists");
    skip_blanks();
    Value value;
    switch (peek()) {
      case 'n':
        word("null");
        break;
      case 't':
      case 'f':
        value.kind_ = Value::Kind::boolean;
        value.boolean_ = peek() == 't';
        word(value.boolean_ ? "true" : "false");
        break;
      case '"':
        value.kind_ = Value::Kind::text;
        value.text_ = string();
        break;
      case '[':
        value.kind_ = Value::Kind::list;
        members(']', [&] { value.list_.push_back(read(depth + 1)); });
        break;
      case '{':
        value.kind_ = Value::Kind::object;
        members('}', [&] { member(&value, depth); });
        break;
      default:
        value.kind_ = Value::Kind::number;
        value.number_ = number();
    }
    return value;
  }

  template <class One>
  void members(char end, One one) {
    ++at_;
    skip_blanks();
    if (take(end)) return;
    do {
      one();
      skip_blanks();
    } while (take(','));
    if (!take(end)) refuse(end == ']' ? ", or ]" : ", or }");
  }

  void member(Value* object, int depth) {
    skip_blanks();
    if (peek() != '"') refuse("the name of a member");
    std::string key = string();
    for (const std::string& other : object->keys_) {
      if (other == key) refuse("a new name; this one came before");
    }
    skip_blanks();
    if (!take(':')) refuse(":");
    object->list_.push_back(read(depth + 1));
    object->keys_.push_back(std::move(key));
  }

  std::string string() {
    ++at_;
    std::string out;
    while (true) {
      if (at_ >= text_.size()) refuse("the end of a text");
      const auto letter = static_cast<unsigned char>(text_[at_]);
      if (letter < 0x20) refuse("a letter that may stand in a text");
      ++at_;
      if (letter == '"') return out;
      if (letter == '\\') {
        escape(&out);
      } else {
        out.push_back(static_cast<char>(letter));
        if (letter >= 0x80) rest_of_letter(letter, &out);
      }
    }
  }

  // The bytes that follow the first one of a letter in UTF-8.
  void rest_of_letter(unsigned char first, std::string* out) {
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    if (first < 0xC2 || first > 0xF4) refuse("UTF-8");
    for (int i = 0; i < more; ++i, ++at_) {
      if ((static_cast<unsigned char>(peek()) & 0xC0) != 0x80) refuse("UTF-8");
      out->push_back(peek());
    }
  }

  void escape(std::string* out) {
    static const std::string letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    if (take('u')) {
      unsigned code = hexadecimal();
      if (code >= 0xD800 && code < 0xDC00) {
        if (!take('\\') || !take('u')) refuse("the second half of a letter");
        const unsigned low = hexadecimal();
        if (low < 0xDC00 || low > 0xDFFF) refuse("the second half of a letter");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else if (code >= 0xDC00 && code < 0xE000) {
        refuse("the first half of a letter");
      }
      append_utf8(out, code);
      return;
    }
    const size_t which = at_ < text_.size() ? letters.find(text_[at_]) : std::string::npos;
    if (which == std::string::npos) refuse("an escape sequence");
    ++at_;
    out->push_back(meanings[which]);
  }

  unsigned hexadecimal() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const char letter = peek();
      unsigned digit = 16;
      if (letter >= '0' && letter <= '9') digit = static_cast<unsigned>(letter - '0');
      if (letter >= 'a' && letter <= 'f') digit = static_cast<unsigned>(letter - 'a') + 10;
      if (letter >= 'A' && letter <= 'F') digit = static_cast<unsigned>(letter - 'A') + 10;
      if (digit > 15) refuse("a hexadecimal digit");
      code = code * 16 + digit;
      ++at_;
    }
    return code;
  }

  void digits() {
    if (peek() < '0' || peek() > '9') refuse("a value");
    while (peek() >= '0' && peek() <= '9') ++at_;
  }

  double number() {
    const size_t begin = at_;
    take('-');
    if (!take('0')) digits();
    if (take('.')) digits();
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      digits();
    }
    // Whatever the program's locale, a point is a point.
    std::istringstream stream(text_.substr(begin, at_ - begin));
    stream.imbue(std::locale::classic());
    double value = 0.0;
    stream >> value;
    if (stream.fail() || !std::isfinite(value)) {
      at_ = begin;
      refuse("a number that float64 holds");
    }
    return value;
  }

  const std::string& text_;
  size_t at_ = 0;
};

Value Value::parse(const std::string& text) { return Parser(text).whole(); }

void Value::expect(Kind kind, const std::string& what) const {
  if (kind_ == kind) return;
  throw Error(what + " is " + kNames[static_cast<int>(kind_)] + "; it must be " +
              kNames[static_cast<int>(kind)]);
}

double Value::number(const std::string& what) const {
  expect(Kind::number, what);
  return number_;
}

long long Value::integer(const std::string& what, long long lowest, long long highest) const {
  expect(Kind::number, what);
  if (number_ != std::floor(number_) || number_ < static_cast<double>(lowest) ||
      number_ > static_cast<double>(highest)) {
    std::ostringstream words;
    words << what << " is " << number_ << "; it must be a whole number from " << lowest << " to "
          << highest;
    throw Error(words.str());
  }
  return static_cast<long long>(number_);
}

const std::string& Value::text(const std::string& what) const {
  expect(Kind::text, what);
  return text_;
}

const std::vector<Value>& Value::list(const std::string& what) const {
  expect(Kind::list, what);
  return list_;
}

const Value* Value::find(const std::string& key) const {
  expect(Kind::object, "what should hold " + key);
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (keys_[i] == key) return &list_[i];
  }
  return nullptr;
}

const Value& Value::at(const std::string& key) const {
  const Value* value = find(key);
  if (value == nullptr) throw Error("it lacks '" + key + "'");
  return *value;
}

}  // namespace dela::capi::json
