#include "tiltflow/sampler/labels.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

TEST(sampler_labels, ListsFilesAndWeights) {
  const RandomStreams streams(3);
  LabelConfig config;
  config.kind = "list";
  config.list = {4, 1, 7};
  EXPECT_TRUE(
      at::equal(make_labels(config, 10, streams, 0, 2)(1, 4), at::tensor({4, 1, 7, 4}, at::kLong)));
  config.list = {4, 11};
  test::expect_error(ErrorKind::kConfig, "label 11 is out of range",
                     [&] { make_labels(config, 10, streams, 0, 0); });
  config.kind = "weighted";
  config.weights = {0, 3, 1, 0};
  const at::Tensor drawn = make_labels(config, 4, streams, 0, 0)(0, 4000);
  const at::Tensor shares = drawn.bincount({}, 4).to(at::kDouble) / 4000;
  EXPECT_EQ(shares[0].item<double>() + shares[3].item<double>(), 0);
  EXPECT_NEAR(shares[1].item<double>(), 0.75, 0.03);
  EXPECT_TRUE(at::equal(make_labels(config, 4, streams, 0, 0)(100, 50), drawn.narrow(0, 100, 50)))
      << "sample i keeps its label";
  test::expect_error(ErrorKind::kConfig, "4 label weights for 10 classes",
                     [&] { make_labels(config, 10, streams, 0, 0); });
  test::expect_error(ErrorKind::kConfig, "not a label", [] { parse_labels("1, 2.5", "x"); });
  test::expect_error(ErrorKind::kConfig, "'cat' is not a number",
                     [] { parse_labels("1 cat", "x"); });
}

// Text files as editors and spreadsheets write them; errors name the line.
TEST(sampler_labels, FilesOfOtherEditors) {
  const test::TempDir dir;
  LabelConfig config;
  config.kind = "file";
  config.file = (dir / "l.txt").string();
  const auto read = [&](const std::string& content) {
    write_file_atomic(config.file, content);
    return make_labels(config, 10, RandomStreams(1), 0, 0)(0, 3);
  };
  const at::Tensor expected = at::tensor({3, 1, 10}, at::kLong);
  EXPECT_TRUE(at::equal(read("\xef\xbb\xbf"
                             "3\r\n1\r\n10\r\n"),
                        expected))
      << "a byte order mark and CRLF";
  EXPECT_TRUE(at::equal(read("\n3,1,\n\n 10,\n\n"), expected)) << "blank lines, trailing commas";
  EXPECT_TRUE(at::equal(read("3\t1.0 10"), expected))
      << "no last newline; whole numbers of a table with gaps";
  test::expect_error(ErrorKind::kConfig, "l.txt, line 3: label 11 is out of range",
                     [&] { read("1\n\n11\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 2: label -1 is out of range",
                     [&] { read("1\n-1\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 2: 'cat' is not a number",
                     [&] { read("1\ncat\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 2: '2.5' is not a label",
                     [&] { read("1\r\n2.5\r\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 1: '1;2' is not a number",
                     [&] { read("1;2"); });
  test::expect_error(ErrorKind::kConfig, "UTF-16", [&] {
    read(
        std::string("\xff\xfe"
                    "1\0\n\0",
                    6));
  });
  test::expect_error(ErrorKind::kConfig, "no numbers", [&] { read("\xef\xbb\xbf\r\n"); });
  write_file_atomic(config.file, "1\n77\n");
  config = with_file_read(config);
  test::expect_error(ErrorKind::kConfig, "line 2: label 77",
                     [&] { make_labels(config, 10, RandomStreams(1), 0, 0); });
}

// Which samples lose their label says nothing about the label they had.
TEST(sampler_labels, DropoutIsIndependentOfTheLabel) {
  LabelConfig config;
  config.dropout = 0.5;
  config.weights = {1, 1};
  for (const char* kind : {"uniform", "weighted"}) {
    config.kind = kind;
    const at::Tensor drawn = make_labels(config, 2, RandomStreams(3), 0, 0)(0, 4000);
    const at::Tensor shares = drawn.bincount({}, 3).to(at::kDouble) / 4000;
    EXPECT_NEAR(shares[0].item<double>(), 0.25, 0.03) << kind;  // four standard errors
    EXPECT_NEAR(shares[1].item<double>(), 0.25, 0.03) << kind;
    EXPECT_NEAR(shares[2].item<double>(), 0.5, 0.03) << kind << ": the null class";
  }
}

}  // namespace tiltflow
