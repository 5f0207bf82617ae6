// Folders of pictures as people have them: what counts as a class, what is left out, and what is
// refused.
#include <sys/stat.h>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/image.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

// A folder of pictures that grows file by file.
class Folder {
 public:
  void picture(const std::string& name, std::int64_t side = 8, std::int64_t channels = 3,
               double value = 0.5) {
    file(name, encode_png(at::full({channels, side, side}, value)));
  }
  void file(const std::string& name, const std::string& content) {
    fs::create_directories((dir_ / name).parent_path());
    write_file_atomic(dir_ / name, content);
  }
  void golden(const std::string& name, const std::string& source) {
    file(name, read_file(test::source_dir() / "tests/golden/pictures" / source));
  }
  fs::path path(const std::string& name = "") const {
    return name.empty() ? dir_.path() : dir_ / name;
  }
  DatasetConfig config() const { return {"folder", dir_.path().string()}; }
  ImageDataset read() const { return read_dataset(config(), "train"); }

 private:
  test::TempDir dir_;
};

std::string all_notes(const std::vector<std::string>& notes) { return join(notes, "\n"); }

}  // namespace

TEST(io_picture_folder, HiddenFoldersAndLitterAreNoClasses) {
  Folder folder;
  for (const char* name :
       {"cat/0.png", "dog/0.png", ".ipynb_checkpoints/0.png", ".git/0.png", "__MACOSX/cat/0.png",
        "@eaDir/0.png", "cat/.ipynb_checkpoints/0.png", "cat/._0.png"}) {
    folder.picture(name);
  }
  folder.file("cat/Thumbs.db", "x");
  const ImageDataset data = folder.read();
  EXPECT_EQ(data.class_names, (std::vector<std::string>{"cat", "dog"}));
  EXPECT_TRUE(at::equal(data.labels, at::tensor({0, 1}, at::kLong)));
  EXPECT_NE(all_notes(data.notes).find(".ipynb_checkpoints"), std::string::npos);
}

// As sorted(os.walk(class, followlinks=True)): folder by folder, names by their bytes; nested
// folders, upper-case suffixes, links.
TEST(io_picture_folder, OrderIsThatOfImageFolder) {
  Folder folder;
  for (const char* name : {"b/z.png", "b/A.PNG", "b/sub/1.png", "b/sub-x/1.png", "b/sub/deep/0.png",
                           "B/1.png", "\xc3\xa9t\xc3\xa9/1.png"}) {
    folder.picture(name);
  }
  fs::create_directory_symlink(folder.path("B"), folder.path("b/link"));
  fs::create_directory_symlink(folder.path("b"), folder.path("b/sub/loop"));
  fs::create_symlink(folder.path("B/1.png"), folder.path("B/2.png"));
  const PictureList list = list_picture_folder(folder.path());
  EXPECT_EQ(list.class_names, (std::vector<std::string>{"B", "b", "\xc3\xa9t\xc3\xa9"}));
  std::vector<std::string> names;
  for (const fs::path& file : list.files) {
    names.push_back(file.lexically_relative(folder.path()).string());
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"B/1.png", "B/2.png", "b/A.PNG", "b/z.png", "b/link/1.png",
                                      "b/link/2.png", "b/sub/1.png", "b/sub-x/1.png",
                                      "b/sub/deep/0.png", "\xc3\xa9t\xc3\xa9/1.png"}));
  EXPECT_NE(all_notes(list.notes).find("b/sub/loop"), std::string::npos);
}

TEST(io_picture_folder, OtherFormatsAndStrayPicturesAreCounted) {
  Folder folder;
  folder.picture("a/0.png");
  folder.picture("stray.png");
  folder.picture("a/.second.png");
  for (const char* name : {"a/1.gif", "a/2.GIF", "a/3.tiff", "a/4.avif"}) folder.file(name, "x");
  const std::string notes = all_notes(folder.read().notes);
  EXPECT_NE(notes.find("files of formats that are not read: 4 (.avif 1, .gif 2, .tiff 1)"),
            std::string::npos)
      << notes;
  EXPECT_NE(
      notes.find(
          "pictures beside the class folders belong to no class and are left out: 1 (stray.png)"),
      std::string::npos)
      << notes;
  EXPECT_NE(notes.find("pictures whose name begins with a dot are left out: 1 (a/.second.png)"),
            std::string::npos)
      << notes;
}

TEST(io_picture_folder, EmptyClassesAreNamed) {
  Folder folder;
  folder.picture("a/0.png");
  fs::create_directories(folder.path("empty"));
  folder.file("gifs/1.gif", "x");
  test::expect_error(ErrorKind::kBadFile,
                     "classes without pictures: 2 of 3 (empty, gifs); files of formats that are "
                     "not read: 1 (.gif 1)",
                     [&] { folder.read(); });
  Folder flat;
  flat.picture("0.png");
  test::expect_error(ErrorKind::kBadFile, "no pictures", [&] { flat.read(); });
  test::expect_error(ErrorKind::kBadFile, "not found",
                     [&] { read_dataset({"folder", flat.path("none").string()}, "train"); });
}

TEST(io_picture_folder, AllBadFilesAreNamedTogetherOrSkippedAndCounted) {
  Folder folder;
  for (const char* name : {"a/0.png", "a/1.png", "b/0.png"}) folder.picture(name);
  const std::string jpeg = read_file(test::source_dir() / "tests/golden/pictures/rgb.jpg");
  folder.file("a/cut.jpg", jpeg.substr(0, jpeg.size() / 2));
  folder.file("b/empty.png", "");
  fs::create_symlink("/nonexistent.png", folder.path("b/link.png"));
  ASSERT_EQ(::mkfifo(folder.path("b/pipe.png").c_str(), 0600), 0);
  try {
    folder.read();
    FAIL() << "bad files are accepted";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("4 of 7 pictures"), std::string::npos) << what;
    for (const char* name : {"a/cut.jpg: broken JPEG", "b/empty.png: the file is empty",
                             "b/link.png: a link to nothing", "b/pipe.png: not a regular file"}) {
      EXPECT_NE(what.find(name), std::string::npos) << what;
    }
    EXPECT_NE(error.hint().find("skip_bad"), std::string::npos);
  }
  DatasetConfig config = folder.config();
  config.skip_bad = true;
  const ImageDataset data = read_dataset(config, "train");
  EXPECT_EQ(data.size(), 3);
  EXPECT_TRUE(at::equal(data.labels, at::tensor({0, 0, 1}, at::kLong)));
  EXPECT_EQ(data.skipped.size(), 4u);
  EXPECT_NE(all_notes(data.notes).find("skipped: 4 of 7 pictures"), std::string::npos);
}

TEST(io_picture_folder, NothingIsLeftWhenEveryPictureIsBad) {
  Folder folder;
  for (int i = 0; i < 12; ++i) folder.file(cat("a/", i, ".png"), "x");
  DatasetConfig config = folder.config();
  test::expect_error(ErrorKind::kBadFile, "and 4 more", [&] { read_dataset(config, "train"); });
  config.skip_bad = true;
  test::expect_error(ErrorKind::kBadFile, "cannot be used: 12 of 12 pictures",
                     [&] { read_dataset(config, "train"); });
}

TEST(io_picture_folder, GreyAmongColoursByRule) {
  Folder folder;
  for (int i = 0; i < 70; ++i) folder.picture(cat("a/", i / 10, i % 10, ".png"), 4, 1, i / 100.);
  EXPECT_EQ(folder.read().shape(), (std::vector<std::int64_t>{1, 4, 4}));
  folder.picture("a/99.png", 4, 3);  // the last of many
  const ImageDataset mixed = folder.read();
  EXPECT_EQ(mixed.shape(), (std::vector<std::int64_t>{3, 4, 4}));
  EXPECT_NE(all_notes(mixed.notes)
                .find("grey among colours, repeated for three channels (data.channels), in 70 of "
                      "71 pictures"),
            std::string::npos)
      << all_notes(mixed.notes);
  DatasetConfig config = folder.config();
  config.channels = "grey";
  EXPECT_EQ(read_dataset(config, "train").shape(), (std::vector<std::int64_t>{1, 4, 4}));
  config.memory = 100;  // stays on disk
  const ImageDataset disk = read_dataset(config, "train");
  EXPECT_FALSE(disk.images.defined());
  EXPECT_EQ(disk.batch(at::tensor({70}, at::kLong)).sizes().vec(),
            (std::vector<std::int64_t>{1, 1, 4, 4}));
  config.channels = "auto";
  EXPECT_EQ(read_dataset(config, "train").batch(at::tensor({0, 70}, at::kLong)).sizes().vec(),
            (std::vector<std::int64_t>{2, 3, 4, 4}));
}

TEST(io_picture_folder, TransparencyRotationsAndAnimationsAreSaid) {
  Folder folder;
  folder.golden("a/alpha.webp", "alpha.webp");
  folder.golden("a/rgb.png", "rgb.png");
  const std::string notes = all_notes(folder.read().notes);
  EXPECT_NE(notes.find("(data.alpha) in 1 of 2 pictures"), std::string::npos) << notes;
  DatasetConfig config = folder.config();
  config.alpha = "white";
  const at::Tensor white = read_dataset(config, "train").images[0];
  const at::Tensor dropped = folder.read().images[0];
  EXPECT_FALSE(at::equal(white, dropped));
  EXPECT_TRUE((white.to(at::kInt) >= dropped.to(at::kInt)).all().item<bool>());
  config.alpha = "refuse";
  test::expect_error(ErrorKind::kBadFile, "alpha.webp: the picture has transparent pixels",
                     [&] { read_dataset(config, "train"); });
  Folder others;
  others.golden("a/rotated.jpg", "rotated.jpg");
  others.golden("a/moving.webp", "animated.webp");
  config = others.config();
  config.size = 8;
  const std::string said = all_notes(read_dataset(config, "train").notes);
  EXPECT_NE(
      said.find("an EXIF rotation that is not applied, as in ImageFolder, in 1 of 2 pictures"),
      std::string::npos)
      << said;
  EXPECT_NE(said.find("an animation, of which the first frame is used, in 1 of 2 pictures"),
            std::string::npos)
      << said;
}

TEST(io_picture_folder, OtherSizesAreNamedTogether) {
  Folder folder;
  for (const char* name : {"a/0.png", "a/1.png", "b/0.png"}) folder.picture(name);
  folder.picture("b/odd.png", 9);
  folder.picture("a/one.png", 1);
  test::expect_error(ErrorKind::kBadFile, "not 8 x 8 as the others: 2 of 5 pictures",
                     [&] { folder.read(); });
  DatasetConfig config = folder.config();
  config.size = 5;
  EXPECT_EQ(read_dataset(config, "train").shape(), (std::vector<std::int64_t>{3, 5, 5}));
}

}  // namespace tiltflow
