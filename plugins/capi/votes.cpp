#include "capi/votes.h"

#include <algorithm>
#include <cmath>

#include "capi/failure.h"
#include "capi/scan.h"
#include "cpu/softmax.h"

namespace dela::capi {
namespace {

// Of dela/scan/votes.py: how near, in voxels, a vote's point must stand to a point to be told mostly
// by it, and how much votes farther away still count.
constexpr double kNear = 0.2, kFarWeight = 1e-3;

// A turn by vote / votes of a circle about an axis, odd votes mirrored before; row major.
void vote_matrix(int vote, int votes, int axis, double matrix[9]) {
  const double angle = 2 * M_PI * vote / votes;
  const double mirror = vote % 2 == 1 ? -1.0 : 1.0;
  const double about_z[3][3] = {{std::cos(angle) * mirror, -std::sin(angle), 0.0},
                                {std::sin(angle) * mirror, std::cos(angle), 0.0},
                                {0.0, 0.0, 1.0}};
  // The same with x, y, z renamed in turn until z is the axis.
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      matrix[3 * row + column] = about_z[(row + 2 - axis) % 3][(column + 2 - axis) % 3];
    }
  }
}

// Probabilities [rows, classes] of one tile.
std::vector<float> look_at(const Session& session, const Contract& contract, const Pyramid& pyramid) {
  const auto rows = static_cast<int64_t>(pyramid.points.size() / 3);
  const auto columns = static_cast<int64_t>(contract.columns.size());
  const auto classes = static_cast<int64_t>(contract.classes.size());
  std::vector<Feed> feeds{{"points", ort::kFloat, pyramid.points.data(), {rows, 3}}};
  if (columns > 0) {
    feeds.push_back({"attributes", ort::kFloat, pyramid.attributes.data(), {rows, columns}});
  }
  for (int stage = 0; stage < contract.stages(); ++stage) {
    const std::vector<int32_t>& table = pyramid.neighbors[stage];
    const int64_t k = contract.neighbors[stage];
    feeds.push_back({"neighbors_" + std::to_string(stage), ort::kInt32, table.data(),
                     {static_cast<int64_t>(table.size()) / k, k}});
  }
  for (size_t i = 0; i < pyramid.kept.size(); ++i) {
    feeds.push_back({"kept_" + std::to_string(i + 1), ort::kInt32, pyramid.kept[i].data(),
                     {static_cast<int64_t>(pyramid.kept[i].size())}});
  }
  for (size_t i = 0; i < pyramid.nearest.size(); ++i) {
    feeds.push_back(
        {"nearest_" + std::to_string(i + 1), ort::kInt32, pyramid.nearest[i].data(), {rows}});
  }
  std::vector<float> logits = session.run(feeds, contract.classification ? 1 : rows, classes);
  for (const float value : logits) {
    if (std::isfinite(value)) continue;
    fail(DELA_FAILED, "the network gave %g for a class; the file is damaged, or its precision does not "
         "hold its values (export with --dtype fp32)", value);
  }
  dela_softmax(logits.data(), static_cast<int64_t>(logits.size()) / classes, classes, logits.data());
  return logits;
}

// Answers added up; as dela/scan/votes.py:_HostTally.
class Tally {
 public:
  Tally(const Contract& contract, const Cloud& cloud, const Scan& plain, int votes)
      : contract_(contract),
        cloud_(cloud),
        plain_(plain),
        votes_(votes),
        classes_(static_cast<int64_t>(contract.classes.size())),
        by_point_(votes > 1 && !contract.classification),
        vote_((contract.classification ? 1 : plain.count()) * classes_) {
    if (by_point_) {
      total_.resize(cloud.count() * classes_);
      weights_.resize(cloud.count());
    }
  }

  void add_tile(const std::vector<float>& probabilities, const Tile& tile) {
    if (contract_.classification) {
      for (int64_t i = 0; i < classes_; ++i) vote_[i] += probabilities[i];
      return;
    }
    for (size_t i = 0; i < tile.rows.size(); ++i) {
      if (!tile.core[i]) continue;
      std::copy_n(probabilities.begin() + static_cast<int64_t>(i) * classes_, classes_,
                  vote_.begin() + tile.rows[i] * classes_);
    }
  }

  // `seen` has this vote's points, not turned.
  void end_vote(const Scan& seen) {
    if (!by_point_) return;
    const double reach = kNear * contract_.grid[0];
    for (int64_t i = 0; i < cloud_.count(); ++i) {
      const int64_t voxel = plain_.voxel_of_point[i];
      double square = 0.0;
      for (int axis = 0; axis < 3; ++axis) {
        const double apart =
            cloud_.points[3 * i + axis] - static_cast<double>(seen.points[3 * voxel + axis]);
        square += apart * apart;
      }
      const auto weight = static_cast<float>(std::exp(-square / (reach * reach)) + kFarWeight);
      for (int64_t c = 0; c < classes_; ++c) {
        total_[i * classes_ + c] += weight * vote_[voxel * classes_ + c];
      }
      weights_[i] += weight;
    }
  }

  Answer answer() {
    std::vector<float>& rows = by_point_ ? total_ : vote_;
    const auto looks = static_cast<float>(contract_.classification ? votes_ : 1);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] /= by_point_ ? weights_[i / classes_] : looks;
    }
    Answer answer;
    answer.classes.resize(cloud_.count());
    answer.confidences.resize(cloud_.count());
    for (int64_t i = 0; i < cloud_.count(); ++i) {
      const auto row = rows.begin() + (by_point_ ? i : plain_.voxel_of_point[i]) * classes_;
      const auto most = std::max_element(row, row + classes_);
      answer.classes[i] = static_cast<int32_t>(most - row);
      answer.confidences[i] = *most;
    }
    return answer;
  }

 private:
  const Contract& contract_;
  const Cloud& cloud_;
  const Scan& plain_;
  const int votes_;
  const int64_t classes_;
  const bool by_point_;
  std::vector<float> vote_, total_, weights_;
};

}  // namespace

Answer take_votes(const Session& session, const Contract& contract, const Cloud& cloud,
                  const Votes& options) {
  const Scan plain = make_scan(cloud, contract, 0, options.threads);
  const std::vector<Tile> tiles = cut_tiles(plain, contract, options.max_points);
  Tally tally(contract, cloud, plain, options.votes);
  for (int vote = 0; vote < options.votes; ++vote) {
    Scan other, moved;
    if (vote > 0) other = make_scan(cloud, contract, vote, options.threads);
    const Scan& seen = vote > 0 ? other : plain;
    const bool turns = vote > 0 && contract.vote_axis >= 0;
    if (turns) {
      double matrix[9];
      vote_matrix(vote, options.votes, contract.vote_axis, matrix);
      moved = turned(seen, matrix, contract);
    }
    const Scan& looked_at = turns ? moved : seen;
    for (const Tile& tile : tiles) {
      const Pyramid pyramid = build_pyramid(looked_at, tile, contract, options.threads);
      tally.add_tile(look_at(session, contract, pyramid), tile);
    }
    tally.end_vote(seen);
  }
  return tally.answer();
}

}  // namespace dela::capi
