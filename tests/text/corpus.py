"""Texts that tokenizers get wrong: all scripts, emoji, runs of whitespace, digits, code, broken shapes."""

import random

SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2190, 0x22FF), (0x2500, 0x25FF),
    (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xFE00, 0xFE0F), (0x1F300, 0x1F6FF),
    (0x1F900, 0x1F9FF), (0x20000, 0x200FF), (0x0, 0x1F), (0x300, 0x36F),
]  # fmt: skip
FIXED = [
    "", " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b   c    d", "Hello, world!",
    "I'm you're it's we'll they've I'd CAN'T", "0123456789 3.14159 1,000,000 0x1F", "x=1\n\tif y:\n\t\treturn",
    "def f(x):\n    return {'a': [1, 2]}\n", "naïve café résumé", "Ünïcödé", "e\u0301 vs é", "ﬁ ﬀ ½ Ⅷ",
    "日本語のテキスト。", "中文，测试！", "한국어 문장", "العربية ١٢٣", "עברית", "हिन्दी में", "ไทย", "Ελληνικά", "Русский",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇮🇹", "\u200b\u200d\ufeff", "a\u00a0b\u3000c", "▁ ▁▁ a▁b", "\x00\x01\x7f", "...!!!???",
    "http://example.com/a?b=c&d=%20", "<|im_start|>user\nhi<|im_end|>", "<bos><eos><pad><start_of_turn>",
    "<|endoftext|>", "</s><s>[INST]", "<0x0A>", "<unk>", "Ġ Ċ ĉ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "a" * 300, " " * 70, "\n" * 40,
    "'s 't 'RE 'Ve", "1a2b3c", "١٢٣٤٥", "<table><tr><td>", "tab\tspace newline\nend",
]  # fmt: skip


def random_text(rng: random.Random) -> str:
    out = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            out.append(rng.choice([" ", "  ", "\n", "\t", "   ", "\n\n", " \n"]) * rng.randrange(1, 5))
        elif kind < 0.45:
            out.append(str(rng.randrange(10 ** rng.randrange(1, 12))))
        elif kind < 0.6:
            out.append(rng.choice(FIXED))
        else:
            low, high = rng.choice(SCRIPTS)
            out += [chr(rng.randrange(low, high + 1)) for _ in range(rng.randrange(1, 9))]
    return "".join(out)


def corpus(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return FIXED + [random_text(rng) for _ in range(count)]
