"""Files that a reader of checkpoints must survive."""

import io
import pickle
import pickletools
import struct
import zipfile

import numpy as np

MARKER = "executed"


class Attack:
    """Pickled as a call of `os.system`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def framed(body):
    """A pickle with hand-written instructions."""
    return b"\x80\x04" + body + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(inner):
    """A published file whose only weight has `inner` for its storage."""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        b"(ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(inner))
        + inner
        + b"\x85RK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )
    state = b"}(" + text("_parameters") + b"}" + text("weight") + tensor + b"su"
    meta = (
        b"}(" + text("class_name") + text("IMMPrecond") + text("state") + state + b"u"
    )
    module = (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"
    )
    return framed(b"}" + text("ema") + module + b"s")


def legacy_storage(persistent_id):
    """A storage in PyTorch's format, with the given pickle for its identity."""
    parts = [
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(1001, 2),
        pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2),
        persistent_id,
        pickle.dumps(["0"], 2),
        struct.pack("<q", 1),
        struct.pack("<f", 1.0),
    ]
    return b"".join(parts)


def attacks(marker):
    """Name and content of files that would create `marker`, or exhaust the machine."""
    attack = Attack(marker)
    call = pickle.dumps(attack, 2)[2:-1]
    yield "system", pickle.dumps(attack)
    yield "system_protocol_0", pickle.dumps(attack, 0)
    yield "system_in_ema", pickle.dumps({"ema": attack})
    yield "eval", framed(b"cbuiltins\neval\n" + text("open('x', 'w')") + b"\x85R")
    # A call hidden in the arguments of a call that is allowed.
    yield (
        "reduce",
        framed(b"ccollections\nOrderedDict\n" + call + b"\x85R"),
    )
    yield "called_twice", framed(b"ccollections\nOrderedDict\n)R)R")
    yield "build_on_dict", framed(b"}}b")
    yield "build_calls", framed(b"ctorch.nn.modules.linear\nLinear\n)R" + call + b"b")
    yield "inst", b"(S'touch x'\nios\nsystem\n."
    yield "extension", framed(b"\x82\x01")
    yield "storage", storage(pickle.dumps(attack, 2))
    yield "storage_identity", storage(legacy_storage(b"\x80\x02" + call + b"."))
    yield (
        "persistent_id_in_storage",
        storage(legacy_storage(b"\x80\x02" + call + b"Q.")),
    )
    yield "persistent_id", framed(call + b"Q")
    yield "persistent_id_text", b"P" + marker.encode() + b"\n."
    yield "dotted_name", framed(text("torch") + text("os.system") + b"\x93")
    yield "module_name", framed(text("torch.nn.modules.os") + text("a.b") + b"\x93")
    yield "zip_bomb", zip_bomb()
    yield "empty", b""
    yield "not_a_pickle", b"\x89PNG\r\n\x1a\n" + bytes(1000)
    yield "no_stop", b"\x80\x04}"
    # Instructions that cost far more than they are long.
    yield "memo_index", framed(b"}r" + struct.pack("<I", 2**32 - 1))
    yield "long_bytes", framed(b"\x8e" + struct.pack("<Q", 2**60))
    yield "long_frame", framed(b"\x95" + struct.pack("<Q", 2**60) + b"}")
    yield "long_text", framed(b"X" + struct.pack("<I", 2**32 - 1))
    doubling = b")" + b"q\x00h\x00\x86" * 100
    yield "tuple_as_key", framed(b"}" + doubling + b"Ks")
    yield "tuple_as_key_of_ema", framed(b"}" + doubling + b"K\x01s")
    yield "tuple_in_ema", framed(b"}" + text("ema") + doubling + b"s")
    yield "deep", framed(b"]" * 100_000 + b"a" * 99_999)
    yield "marks", framed(b"(" * 1_000_000)
    yield "module_in_itself", module_in_itself()
    yield "modules_doubling", modules_doubling(30)
    yield "modules_nested", modules_nested(10_000)
    yield "colliding_keys", colliding_keys(60_000)
    yield "shared_buffers", shared_buffers(30_000, 10_000)
    yield "storage_of_instructions", storage(b"\x80\x02(" + b"N" * 400_000 + b"t.")
    yield "huge_number", framed(b"\x8b" + struct.pack("<i", 2**20) + b"\xff" * 2**20)


def module_in_itself():
    inner = b"ctorch.nn.modules.container\nSequential\n)\x81q\x00"
    state = b"}" + text("_modules") + b"}" + text("a") + b"h\x00ssb"
    return framed(b"}" + text("ema") + inner + state + b"s")


def modules_doubling(depth):
    """Every module holds the one before it twice: 2 ** depth paths to the first."""
    new = b"ctorch.nn.modules.container\nSequential\n)\x81"
    body = new + b"}bq\x00"
    for _ in range(depth):
        children = b"}(" + text("a") + b"h\x00" + text("b") + b"h\x00u"
        body += new + b"}" + text("_modules") + children + b"sbq\x00"
    return framed(
        b"}(" + text("all") + b"(" + body + b"l" + text("ema") + b"h\x00" + b"u"
    )


def modules_nested(depth):
    new = b"ctorch.nn.modules.container\nSequential\n)\x81"
    start = new + b"}" + text("_modules") + b"}" + text("a")
    return framed(
        b"}" + text("ema") + start * depth + new + b"}b" + b"ssb" * depth + b"s"
    )


def shared_buffers(entries, modules):
    """One large dictionary, empty of weights, in every module."""
    new = b"ctorch.nn.modules.container\nSequential\n)\x81}" + text("_buffers")
    names = b"".join(text(f"a{i}") + b"N" for i in range(entries))
    children = b"".join(text(f"m{i}") + new + b"h\x00sb" for i in range(modules))
    shared = new + b"}(" + names + b"uq\x00sb"
    children = text("first") + shared + children
    outer = b"ctorch.nn.modules.container\nSequential\n)\x81}" + text("_modules")
    return framed(b"}" + text("ema") + outer + b"}(" + children + b"usbs")


def colliding_keys(count):
    """Numbers of one hash, which a dictionary compares one with all before it."""
    keys = b"".join(pickle.dumps(i * (2**61 - 1), 2)[2:-1] + b"N" for i in range(count))
    return framed(b"}(" + keys + b"u")


def zip_bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    return file.getvalue()


def mutations(content, count, seed):
    """Copies of a checkpoint with a few random changes, half of them outside weights.

    Args:
        content: Bytes of a checkpoint.
        count: Number of copies.
        seed: Seed of the changes.
    """
    rng = np.random.default_rng(seed)
    structure = np.ones(len(content), bool)
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name == "BINBYTES":
            structure[position + 5 : position + 5 + len(argument)] = False
    places = np.flatnonzero(structure)
    for index in range(count):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.choice(places) if index % 2 else rng.integers(len(content)))
            kind = rng.integers(4)
            if kind == 0:
                changed[place] = rng.integers(256)
            elif kind == 1:
                changed[place] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                del changed[place : place + int(rng.integers(1, 9))]
            else:
                changed[place:place] = rng.bytes(int(rng.integers(1, 9)))
        yield bytes(changed)
