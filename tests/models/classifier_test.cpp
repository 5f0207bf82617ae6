#include "tiltflow/models/classifier/classifier.h"
#include "tests/support.h"
#include "tiltflow/models/model_file.h"

namespace tiltflow {

TEST(models_classifier, RoundTripAndErrors) {
  const test::TempDir dir;
  ClassifierConfig config;
  config.input_size = 8;
  config.width = 4;
  config.features = 6;
  config.num_classes = 3;
  save_classifier(dir / "c.safetensors", config, init_classifier(config, RandomStreams(1)));
  const auto judge = load_classifier(dir / "c.safetensors");
  EXPECT_EQ(judge->logits(at::rand({2, 1, 8, 8})).sizes().vec(), (std::vector<std::int64_t>{2, 3}));
  test::expect_error(ErrorKind::kBadFile, "not a classifier",
                     [] { load_classifier(test::golden("sit_b_ema.safetensors")); });
}

}  // namespace tiltflow
