// Reads and writes numpy's .npy files (C order, little endian): as much as the example needs.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <dela.h>

namespace npy {

struct Array {
  dela_type type;
  std::vector<int64_t> shape;
  std::vector<char> data;
};

struct Type {
  const char* name;
  dela_type type;
  int64_t bytes;
};
inline constexpr Type kTypes[] = {
    {"f8", DELA_FLOAT64, 8}, {"f4", DELA_FLOAT32, 4}, {"i1", DELA_INT8, 1},
    {"u1", DELA_UINT8, 1},   {"i2", DELA_INT16, 2},   {"u2", DELA_UINT16, 2},
    {"i4", DELA_INT32, 4},   {"u4", DELA_UINT32, 4},  {"i8", DELA_INT64, 8},
    {"u8", DELA_UINT64, 8},
};

// What stands behind a key of the header, a Python dictionary written out.
inline std::string behind(const std::string& header, const std::string& key, const std::string& path) {
  const size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) throw std::runtime_error(path + " has no " + key + " in its header");
  return header.substr(header.find_first_not_of(' ', at + key.size() + 3));
}

inline std::vector<int64_t> read_shape(const std::string& text, const std::string& path) {
  std::vector<int64_t> shape;
  const std::string inside = text.substr(0, text.find(')'));
  for (size_t at = 0; (at = inside.find_first_of("0123456789", at)) != std::string::npos;) {
    const size_t end = inside.find_first_not_of("0123456789", at);
    const std::string digits = inside.substr(at, end - at);
    if (digits.size() > 12) throw std::runtime_error(path + " has a size of " + digits);
    shape.push_back(std::stoll(digits));
    at = end;
  }
  return shape;
}

// Throws std::runtime_error for a file that is missing, cut short or of another kind.
inline Array read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char start[10];
  if (!file.read(start, sizeof start)) throw std::runtime_error("cannot read " + path);
  if (std::string(start, 6) != "\x93NUMPY") throw std::runtime_error(path + " is no .npy file");
  const auto byte = [](char value) { return static_cast<size_t>(static_cast<unsigned char>(value)); };
  size_t length = byte(start[8]) | byte(start[9]) << 8;
  if (start[6] > 1) {  // versions 2 and 3 count the header in four bytes
    char more[2];
    file.read(more, sizeof more);
    length |= byte(more[0]) << 16 | byte(more[1]) << 24;
  }
  if (length > 1 << 20) throw std::runtime_error(path + " has a damaged header");
  std::string header(length, ' ');
  if (!file.read(header.data(), static_cast<std::streamsize>(length))) {
    throw std::runtime_error(path + " is cut short");
  }
  if (behind(header, "fortran_order", path).compare(0, 5, "False") != 0) {
    throw std::runtime_error(path + " is in Fortran's order; save numpy.ascontiguousarray of it");
  }
  const std::string name = behind(header, "descr", path).substr(1, 3);
  for (const Type& type : kTypes) {
    if (name != std::string("<") + type.name && name != std::string("|") + type.name) continue;
    Array array{type.type, read_shape(behind(header, "shape", path), path), {}};
    const std::streamoff begin = file.tellg();
    file.seekg(0, std::ios::end);
    const int64_t held = static_cast<int64_t>(file.tellg()) - begin;
    int64_t bytes = type.bytes;
    for (const int64_t size : array.shape) {
      bytes = size > 0 && bytes > held / size ? held + 1 : bytes * size;
    }
    if (bytes > held) throw std::runtime_error(path + " is cut short");
    array.data.resize(static_cast<size_t>(bytes));
    file.seekg(begin);
    file.read(array.data.data(), static_cast<std::streamsize>(bytes));
    return array;
  }
  throw std::runtime_error(path + " holds values of the type " + name + "; give plain numbers");
}

// Writes a list of numbers beside its place and puts it there when it is whole.
template <class T>
void write(const std::string& path, const char* type, const std::vector<T>& values) {
  std::string header = std::string("{'descr': '<") + type + "', 'fortran_order': False, 'shape': (" +
                       std::to_string(values.size()) + ",), }";
  header.resize((header.size() + 10 + 64) / 64 * 64 - 11, ' ');
  header += '\n';
  const std::string part = path + ".part";
  std::ofstream file(part, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.put(static_cast<char>(header.size() & 0xFF));
  file.put(static_cast<char>(header.size() >> 8));
  file << header;
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(T)));
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
    std::remove(part.c_str());
    throw std::runtime_error("cannot write " + path);
  }
}

}  // namespace npy
