// What an exported file says of its network, as far as the C library needs it: the C++ counterpart
// of dela/artifacts/metadata.py and dela/model/contract.py.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dela::capi {

// One column of the network's attributes: (raw - offset) / scale, after the logarithm where log > 0.
struct Column {
  std::string name;
  double scale = 1.0, offset = 0.0, log = 0.0;
  int category = -1;  // number of the category that the column tells, or -1
};

struct ClassInfo {
  std::string name;
  int32_t code;
};

struct Contract {
  bool classification = false;
  std::vector<ClassInfo> classes;
  std::vector<double> grid;        // voxel sizes of the stages, meters (segmentation)
  std::vector<int64_t> points;     // points of the stages (classification)
  std::vector<int32_t> neighbors;  // of the stages
  std::vector<Column> columns;
  int first_vector = -1;  // first of three columns that turn with the scene, or -1
  int categories = 0;
  int vote_axis = 2;  // what votes turn scans about: 0, 1, 2 or -1

  int stages() const { return static_cast<int>(neighbors.size()); }
};

// One input or output of a graph; a size that varies is -1.
struct GraphTensor {
  std::string name;
  int type;  // of ONNX Runtime's ElementType
  std::vector<int64_t> shape;
};

// Text properties of an ONNX file.
using Properties = std::vector<std::pair<std::string, std::string>>;

// Reads the description; throws Failure(DELA_BAD_MODEL) when the file was not written by dela, is
// of a newer version or of another family, or is damaged. `source` names the file.
Contract read_contract(const Properties& properties, const std::string& source);

// Whether a graph takes and gives what its description says; throws Failure(DELA_BAD_MODEL).
void check_graph(const Contract& contract, const std::vector<GraphTensor>& inputs,
                 const std::vector<GraphTensor>& outputs, const std::string& source);

}  // namespace dela::capi
