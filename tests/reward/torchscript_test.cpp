// Rewards from outside: modules of every kind that people save, and the files they mistake for
// modules. Modules are compiled here from source.
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/io/zip_archive.h"
#include "tiltflow/reward/state_reward.h"
#include "tiltflow/reward/torchscript.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

RewardTerm saved(const test::TempDir& dir, const std::string& body,
                 const std::string& arguments = "x") {
  torch::jit::Module module("R");
  module.define("def forward(self, " + arguments + "):\n" + body + "\n");
  RewardTerm term;
  term.name = "torchscript";
  term.file = (dir / "r.pt").string();
  module.save(term.file);
  return term;
}

at::Tensor scores(const RewardTerm& term, const at::Tensor& labels = {}) {
  const at::Tensor images = at::linspace(0, 1, 2 * 4).view({2, 1, 2, 2});
  return make_reward(term)->score(images, {labels});
}

// tests/golden/torch/reward_module.pt: forward(images) = 3 mean(images^2).
TEST(reward_torchscript, AModuleFromOutside) {
  RewardTerm term;
  term.name = "torchscript";
  term.file = (test::source_dir() / "tests/golden/torch/reward_module.pt").string();
  const StateReward reward(make_weighted_sum({term}), identity_decoder());
  const at::Tensor x = RandomStreams(4).normal(Purpose::kPrior, 0, 0, 0, 3, {1, 4, 4});
  EXPECT_LT(test::relative_error(reward.score(x, {}), x.square().flatten(1).mean(1) * 3), 1e-6);
  EXPECT_LT(test::relative_error(reward.score_and_gradient(x, {}).gradient, x * (6.0 / 16)), 1e-5);
}

TEST(reward_torchscript, ShapesAndTypesOfAnswers) {
  const test::TempDir dir;
  const at::Tensor wanted = at::tensor({0.0F, 1.0F});
  for (const char* body :
       {"  return x[:, 0, 1, 1].round()", "  return x[:, 0, 1, 1].round().unsqueeze(1)",
        "  return x[:, :, 1, 1].round().view(2, 1, 1)", "  return x[:, 0, 1, 1].round().double()",
        "  return x[:, 0, 1, 1].round().byte()", "  return x[:, 0, 1, 1] > 0.5",
        "  return x[:, 0, 1, 1].round().half()"}) {
    const at::Tensor found = scores(saved(dir, body));
    EXPECT_TRUE(at::equal(found, wanted)) << body << found;  // in the type of the images, too
  }
  test::expect_error(ErrorKind::kConfig, "returned a tensor []; expected one number a sample, [2]",
                     [&] { scores(saved(dir, "  return x.mean()")); });
  test::expect_error(ErrorKind::kConfig, "returned a tensor [2, 4]",
                     [&] { scores(saved(dir, "  return x.flatten(1)")); });
  test::expect_error(ErrorKind::kConfig, "returned a tensor [4]",
                     [&] { scores(saved(dir, "  return x[:, 0, 0, :].flatten()")); });
  test::expect_error(ErrorKind::kConfig, "returned Tuple",
                     [&] { scores(saved(dir, "  return x.flatten(1).mean(1), x")); });
  const StateReward nan(make_weighted_sum({saved(dir, "  return x.flatten(1).mean(1).log() * 0")}),
                        identity_decoder());
  test::expect_error(ErrorKind::kNonFinite, "r.pt contains NaN",
                     [&] { nan.score(at::zeros({2, 1, 2, 2}), {}); });
}

// x.sub_(mean).div_(deviation) is how much code normalises.
TEST(reward_torchscript, ModulesMayWorkInPlace) {
  const test::TempDir dir;
  const RewardTerm term = saved(dir, "  x.sub_(0.5).mul_(2)\n  return x.flatten(1).sum(1)");
  const StateReward reward(make_weighted_sum({term, term}), identity_decoder());
  const at::Tensor x = at::linspace(0, 1, 2 * 4).view({2, 1, 2, 2});
  const at::Tensor before = x.clone();
  const at::Tensor wanted = 2 * (2 * before - 1).flatten(1).sum(1);
  EXPECT_LT(test::relative_error(reward.score(x, {}), wanted), 1e-6);
  const ScoreAndGradient found = reward.score_and_gradient(x, {});
  EXPECT_TRUE(at::equal(found.gradient, at::full_like(x, 4)));
  EXPECT_TRUE(at::equal(x, before));
}

TEST(reward_torchscript, FailuresShowTheWholeMessage) {
  const test::TempDir dir;
  const auto message = [&](const RewardTerm& term) {
    try {
      scores(term);
    } catch (const Error& error) {
      return cat(error.what(), " | ", error.hint());
    }
    return std::string();
  };
  const std::string wrong = message(
      saved(dir, "  y = x.flatten(1)\n  return torch.mm(y, torch.ones([7, 1])).squeeze(1)"));
  for (const char* part : {"reward torchscript", "r.pt", "[2, 1, 2, 2]", "torch.mm", "Traceback",
                           "cannot be multiplied", "evaluation mode"}) {
    EXPECT_NE(wrong.find(part), std::string::npos) << part << "\n" << wrong;
  }
  EXPECT_EQ(wrong.find("Exception raised from"), std::string::npos) << "no stack of C++ frames";
  EXPECT_NE(
      message(
          saved(
              dir,
              "  assert x.size(0) > 8, \"nine pictures at least\"\n  return x.flatten(1).mean(1)"))
          .find("nine pictures at least"),
      std::string::npos);
  EXPECT_NE(message(saved(dir, "  return x.view(8, -1).mean(1)[:1]"))
                .find("traced module keeps the N of its example"),
            std::string::npos)
      << "what a trace with eight pictures leaves";
}

TEST(reward_torchscript, Labels) {
  const test::TempDir dir;
  const at::Tensor labels = at::tensor({3, 5}, at::kLong);
  const RewardTerm needed = saved(dir, "  return x.flatten(1).mean(1) * 0 + y", "x, y");
  EXPECT_TRUE(at::equal(scores(needed, labels), labels.to(at::kFloat)));
  test::expect_error(ErrorKind::kConfig, "wants labels", [&] { scores(needed); });
  EXPECT_NO_THROW(
      scores(saved(dir, "  return x.flatten(1).mean(1)", "x, y : Optional[Tensor] = None")));
  test::expect_error(ErrorKind::kBadFile, "forward takes 3 arguments",
                     [&] { make_reward(saved(dir, "  return x.flatten(1).mean(1)", "x, y, z")); });
}

TEST(reward_torchscript, OtherFilesAreNamed) {
  const test::TempDir dir;
  RewardTerm term;
  term.name = "torchscript";
  const auto refused = [&](const std::string& file, const std::string& part) {
    term.file = (dir / file).string();
    test::expect_error(ErrorKind::kBadFile, part, [&] { make_reward(term); });
  };
  refused("missing.pt", "is not there");
  make_directories(dir / "folder");
  refused("folder", "is a folder");
  ParameterSet weights;
  weights.add("w", at::ones({2}));
  write_torch_file(dir / "weights.pt", {{"", weights}});
  refused("weights.pt", "holds weights");
  write_safetensors(dir / "weights.safetensors", weights);
  refused("weights.safetensors", "not a TorchScript module");
  write_file_atomic(dir / "empty.pt", "");
  refused("empty.pt", "not a TorchScript module");
  write_zip(dir / "exported.pt2",
            {{"exported/archive_format", "pt2"}, {"exported/models/model.json", "{}"}});
  refused("exported.pt2", "torch.export (.pt2)");
  write_zip(dir / "older.pt2", {{"serialized_exported_program.json", "{}"}, {"version", "6.1"}});
  refused("older.pt2", "torch.export (.pt2)");
  write_zip(dir / "broken.pt", {{"r/code/__torch__/r.py", "nonsense"}, {"r/constants.pkl", ""}});
  refused("broken.pt", "cannot be loaded");
}

// What is found out of a gradient: none, exactly zero, or one; of every term of a sum.
TEST(reward_torchscript, GradientsAreFoundOut) {
  const test::TempDir dir;
  const at::Tensor x = RandomStreams(4).normal(Purpose::kPrior, 0, 0, 0, 4, {1, 4, 4});
  const auto seen = [&](const std::string& body) {
    return observe_terms(StateReward(make_weighted_sum({saved(dir, body)}), pixel_decoder()), x, {})
        .at(0);
  };
  EXPECT_EQ(seen("  return x.flatten(1).mean(1)").gradient, TermGradient::kPresent);
  EXPECT_EQ(seen("  return (x.flatten(1).mean(1) * 1000).round()").gradient, TermGradient::kZero);
  EXPECT_EQ(seen("  return x.detach().flatten(1).mean(1)").gradient, TermGradient::kNone);
  EXPECT_EQ(seen("  return (x.flatten(1).mean(1) * 100).long()").gradient, TermGradient::kNone);
  EXPECT_EQ(seen("  return x.flatten(1).argmax(1).byte()").gradient, TermGradient::kNone);
  EXPECT_TRUE(seen("  return (x.flatten(1).mean(1) * 1000).round()").varies);
  EXPECT_FALSE(seen("  return x.flatten(1).mean(1) * 0 + 3").varies);
  RewardTerm ink;
  ink.name = "ink";
  const std::vector<ObservedTerm> both = observe_terms(
      StateReward(make_weighted_sum({ink, saved(dir, "  return x.detach().flatten(1).mean(1)")}),
                  pixel_decoder()),
      x, {});
  EXPECT_EQ(both.at(0).gradient, TermGradient::kPresent);
  EXPECT_EQ(both.at(1).gradient, TermGradient::kNone);  // the sum has a graph and lacks this term
  ink.gradient = false;
  EXPECT_FALSE(make_weighted_sum({ink})->info().has_gradient);
  test::expect_error(ErrorKind::kConfig, "has no gradient", [&] {
    StateReward(make_weighted_sum({ink}), pixel_decoder()).score_and_gradient(x, {});
  });
}

}  // namespace
}  // namespace tiltflow
