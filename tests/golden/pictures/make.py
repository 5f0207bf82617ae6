"""Writes the pictures of this folder and, in expected.npz, what Pillow makes of each: np.asarray(Image.open(file).convert("RGB")).

The exception is 16-bit grey, which Pillow cannot convert: round(v / 257) of its 16-bit values.
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

here = pathlib.Path(__file__).parent
random = np.random.default_rng(7)


def smooth(height, width, channels, low=0, high=255):
    """Waves: JPEG and WEBP keep them, and no two channels are alike."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(0.37 * x * (c + 1) + 0.21 * y + c) * 0.5 + 0.5 for c in range(channels)]
    return (low + (high - low) * np.stack(waves, -1)).round().astype(np.uint8)


def png(width, height, bits, color, rows, before=b"", interlace=0):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*c) for c in before) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save(name, image, **options):
    image.save(here / name, **options)


def bmp(name, bits, compression, rows, masks=b"", palette=b"", height=None, width=5, header=40):
    pixels = 14 + header + len(palette) + (len(masks) if header == 40 else 0)
    data = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    info = struct.pack("<IiiHHIIiiII", header, width, height or len(rows), 1, bits, compression, len(data), 0, 0, len(palette) // 4, 0)
    info += masks + b"\0" * (header - 40 - len(masks) if header > 40 else 0)
    (here / name).write_bytes(b"BM" + struct.pack("<IHHI", pixels + len(data), 0, 0, pixels) + info + palette + data)


# PNG
grey = smooth(9, 7, 1)[..., 0]
save("grey.png", Image.fromarray(grey))
save("rgb.png", Image.fromarray(smooth(9, 7, 3)))
save("bilevel.png", Image.fromarray(grey).convert("1"))
save("palette.png", Image.fromarray(smooth(9, 7, 3)).quantize(11))
wide = random.integers(0, 65536, (4, 5), dtype=np.uint16)
wide[0] = [0, 128, 129, 65406, 65535]
(here / "grey16.png").write_bytes(png(5, 4, 16, 0, [r.astype(">u2").tobytes() for r in wide]))
bytes_doubled = smooth(4, 5, 3).astype(np.uint16) * 257
(here / "rgb16.png").write_bytes(png(5, 4, 16, 2, [r.astype(">u2").tobytes() for r in bytes_doubled]))
ramp = np.linspace(0, 255, 8).round().astype(np.uint8)
gamma = [(b"gAMA", struct.pack(">I", 55556)), (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))]
(here / "gamma.png").write_bytes(png(8, 2, 8, 0, [ramp.tobytes()] * 2, gamma))
(here / "grey2bit.png").write_bytes(png(5, 2, 2, 0, [bytes([0b00011011, 0b10000000])] * 2))
(here / "grey4bit.png").write_bytes(png(4, 2, 4, 0, [bytes([0x08, 0xF3])] * 2))
save("alpha.png", Image.fromarray(smooth(6, 5, 4)))
save("grey-alpha.png", Image.fromarray(smooth(6, 5, 2), "LA"))
(here / "palette-trns.png").write_bytes(png(4, 1, 8, 3, [bytes([0, 1, 2, 1])], [(b"PLTE", bytes([10, 20, 30, 200, 100, 50, 7, 8, 9])), (b"tRNS", bytes([0, 128]))]))
(here / "grey-trns.png").write_bytes(png(4, 1, 8, 0, [bytes([0, 77, 200, 77])], [(b"tRNS", struct.pack(">H", 77))]))
(here / "rgb-trns.png").write_bytes(png(2, 1, 8, 2, [bytes([1, 2, 3, 9, 8, 7])], [(b"tRNS", struct.pack(">3H", 9, 8, 7))]))

colors = smooth(9, 7, 3)
passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # Adam7: x, y, steps
rows = [colors[y::down, x::across][i].tobytes() for x, y, across, down in passes for i in range(colors[y::down, x::across].shape[0]) if colors[y::down, x::across].size]
(here / "interlaced.png").write_bytes(png(7, 9, 8, 2, rows, interlace=1))

# JPEG
save("grey.jpg", Image.fromarray(grey), quality=90)
save("rgb.jpg", Image.fromarray(smooth(17, 13, 3)), quality=90)
save("progressive.jpg", Image.fromarray(smooth(17, 13, 3)), quality=85, progressive=True)
save("cmyk.jpg", Image.fromarray(smooth(16, 16, 4), "CMYK"), quality=90)
ycck = io.BytesIO()  # the same with Adobe's marker saying that the colours are YCCK
Image.fromarray(smooth(16, 16, 4), "CMYK").save(ycck, "JPEG", quality=90)
data = bytearray(ycck.getvalue())
at = data.find(b"Adobe")
data[at + 11] = 2
(here / "ycck.jpg").write_bytes(data)
exif = Image.Exif()
exif[0x0112] = 6
save("rotated.jpg", Image.fromarray(smooth(16, 8, 3)), quality=90, exif=exif)

# WEBP
save("lossy.webp", Image.fromarray(smooth(15, 11, 3)), quality=80)
save("lossless.webp", Image.fromarray(smooth(9, 7, 3)), lossless=True)
save("alpha.webp", Image.fromarray(smooth(9, 7, 4)), lossless=True, exact=True)
frames = [Image.fromarray(smooth(8, 8, 3, high=high)) for high in (255, 100)]
save("animated.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)

# BMP
save("rgb.bmp", Image.fromarray(smooth(9, 7, 3)))
save("grey.bmp", Image.fromarray(grey))
save("bilevel.bmp", Image.fromarray(grey).convert("1"))
save("palette.bmp", Image.fromarray(smooth(9, 7, 3)).quantize(11))
save("rgb32.bmp", Image.fromarray(smooth(6, 5, 4), "RGBA"))
fives = random.integers(0, 32768, (3, 5), dtype=np.uint16)
bmp("rgb555.bmp", 16, 0, [r.astype("<u2").tobytes() for r in fives])
sixes = random.integers(0, 65536, (3, 5), dtype=np.uint16)
bmp("rgb565.bmp", 16, 3, [r.astype("<u2").tobytes() for r in sixes], masks=struct.pack("<III", 0xF800, 0x07E0, 0x001F))
four = bytes([10, 20, 30, 0, 40, 50, 60, 0, 70, 80, 90, 0, 255, 254, 253, 0] + [5, 6, 7, 0] * 12)
bmp("four-bit-top-down.bmp", 4, 0, [bytes([0x01, 0x23, 0x10]), bytes([0x32, 0x10, 0x20])], palette=four, height=-2)
bgra = smooth(3, 5, 4)
bmp("masks-with-alpha.bmp", 32, 3, [r[:, [2, 1, 0, 3]].tobytes() for r in bgra], masks=struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=108)

expected = {}
for file in sorted(here.glob("*.*")):
    if file.suffix not in (".png", ".jpg", ".webp", ".bmp"):
        continue
    with Image.open(file) as image:
        expected[file.name] = np.asarray(image.convert("RGB"))
grey16 = np.floor(wide / 257 + 0.5).astype(np.uint8)
expected["grey16.png"] = np.stack([grey16] * 3, -1)
np.savez_compressed(here / "expected.npz", **expected)
print({name: value.shape for name, value in expected.items()})
