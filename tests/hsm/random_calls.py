"""Random PKCS#11 calls by several threads, before and after fork: python3 random_calls.py MODULE PIN CALLS SEED

Pointers are null or valid for the lengths beside them, as the standard demands; everything else is arbitrary. Prints one line of
figures at the end; any other end is a crash. A return code outside of the ones that the standard names for a function is an error.
"""
import ctypes, os, random, sys, threading, time

MODULE, PIN, CALLS, SEED = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4])
THREADS = 4
U, P = ctypes.c_ulong, ctypes.c_void_p

# Order of the 2.40 function list (pkcs11f.h) and the kinds of arguments:
# s session, h object, m mechanism, t template and count, i input and length, o output and length pointer, H handle pointer, u number
NAMES = """Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList GetMechanismInfo InitToken
InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo GetOperationState SetOperationState Login Logout CreateObject
CopyObject DestroyObject GetObjectSize GetAttributeValue SetAttributeValue FindObjectsInit FindObjects FindObjectsFinal EncryptInit
Encrypt EncryptUpdate EncryptFinal DecryptInit Decrypt DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal
SignInit Sign SignUpdate SignFinal SignRecoverInit SignRecover VerifyInit Verify VerifyUpdate VerifyFinal VerifyRecoverInit VerifyRecover
DigestEncryptUpdate DecryptDigestUpdate SignEncryptUpdate DecryptVerifyUpdate GenerateKey GenerateKeyPair WrapKey UnwrapKey DeriveKey
SeedRandom GenerateRandom GetFunctionStatus CancelFunction WaitForSlotEvent""".split()
KINDS = {
    "GetSessionInfo": "sO", "CreateObject": "stH", "CopyObject": "shtH", "DestroyObject": "sh", "GetObjectSize": "shN",
    "GetAttributeValue": "sha", "SetAttributeValue": "sht", "FindObjectsInit": "st", "FindObjects": "sF", "FindObjectsFinal": "s",
    "EncryptInit": "smh", "Encrypt": "sio", "EncryptUpdate": "sio", "EncryptFinal": "so",
    "DecryptInit": "smh", "Decrypt": "sio", "DecryptUpdate": "sio", "DecryptFinal": "so",
    "DigestInit": "sm", "Digest": "sio", "DigestUpdate": "si", "DigestKey": "sh", "DigestFinal": "so",
    "SignInit": "smh", "Sign": "sio", "SignUpdate": "si", "SignFinal": "so",
    "VerifyInit": "smh", "Verify": "sii", "VerifyUpdate": "si", "VerifyFinal": "si",
    "GenerateKey": "smtH", "WrapKey": "smhho", "UnwrapKey": "smhitH", "DeriveKey": "smhtH",
    "SeedRandom": "si", "GenerateRandom": "si", "GetFunctionStatus": "s", "CancelFunction": "s",
    "GetOperationState": "so", "SignRecoverInit": "smh", "SignRecover": "sio", "VerifyRecoverInit": "smh", "VerifyRecover": "sio",
    "DigestEncryptUpdate": "sio", "DecryptDigestUpdate": "sio", "SignEncryptUpdate": "sio", "DecryptVerifyUpdate": "sio",
    "GetSlotInfo": "cO", "GetTokenInfo": "cO", "GetMechanismInfo": "cuO", "GetInfo": "O",
}
OK, NOT_INITIALIZED = 0, 0x190
# Of every function that takes a session.
GENERAL = {OK, 0x7, 0xB3, 0x101, 0x54}
ARGUMENT_ERRORS = {
    "h": {0x60, 0x82, 0x63, 0x62, 0x68, 0x1B}, "m": {0x70, 0x71, 0x1B}, "t": {0x10, 0x11, 0x12, 0x13, 0xD0, 0xD1, 0x1B, 0x140, 0x62},
    "a": {0x11, 0x12, 0x150}, "o": {0x150}, "i": {0x20, 0x21, 0x40, 0x41, 0xC0, 0xC1}, "c": {0x3}, "u": {0x70},
}
OF_FUNCTION = {
    "CreateObject": {0xB5, 0x82}, "CopyObject": {0xB5}, "DestroyObject": {0xB5}, "SetAttributeValue": {0xB5},
    "FindObjectsInit": {0x90}, "FindObjects": {0x91}, "FindObjectsFinal": {0x91}, "GenerateKey": {0xB5, 0x62},
    "WrapKey": {0xB5, 0x69, 0x6A, 0x113, 0x114, 0x115, 0xF0, 0xF1, 0xF2, 0x62, 0x60}, "UnwrapKey": {0xB5, 0xF0, 0xF1, 0xF2, 0x110, 0x112, 0x62},
    "DeriveKey": {0xB5}, "SeedRandom": {0x120}, "GetFunctionStatus": {0x51}, "CancelFunction": {0x51}, "DigestKey": {0x91, 0x67, 0x90},
    "SignInit": {0x90}, "VerifyInit": {0x90}, "EncryptInit": {0x90}, "DecryptInit": {0x90}, "DigestInit": {0x90},
    "GetObjectSize": set(), "GetAttributeValue": set(), "SignRecoverInit": {0x90},
}
for operation in ("Encrypt", "Decrypt", "Digest", "Sign", "Verify"):
    for step in ("", "Update", "Final"):
        OF_FUNCTION[operation + step] = {0x90, 0x91, 0x20, 0x21, 0x40, 0x41}

class Attribute(ctypes.Structure):
    _fields_ = [("type", U), ("value", P), ("len", U)]

class Mechanism(ctypes.Structure):
    _fields_ = [("type", U), ("parameter", P), ("len", U)]

class List(ctypes.Structure):
    _fields_ = [("version", ctypes.c_ubyte * 8), ("call", P * len(NAMES))]

library = ctypes.CDLL(MODULE)
functions = ctypes.POINTER(List)()
assert library.C_GetFunctionList(ctypes.byref(functions)) == OK
call = {name: ctypes.CFUNCTYPE(U, *[P] * 10)(functions.contents.call[i]) for i, name in enumerate(NAMES)}

def login(session):
    return call["Login"](session, 1, PIN, len(PIN), *[None] * 6)

def open_session(writes=True):
    handle = U()
    result = call["OpenSession"](0, 6 if writes else 4, None, None, ctypes.byref(handle), *[None] * 5)
    assert result == OK, hex(result)
    return handle.value

class Caller:
    """What one thread does; everything it hands over stays alive until the call is over."""
    def __init__(self, seed, calls):
        self.random, self.calls, self.sessions, self.objects = random.Random(seed), calls, [], []
        self.counts, self.wrong, self.keep = {}, [], []

    def buffer(self, n):
        data = ctypes.create_string_buffer(self.random.randbytes(n), n) if n else ctypes.create_string_buffer(1)
        self.keep.append(data)
        return ctypes.cast(data, P), n

    def number(self):
        r = self.random
        return r.choice([0, 1, 2, 16, 32, 255, 2**31, 2**63, 2**64 - 1, r.randrange(2**16), r.randrange(2**64)])

    def attribute(self):
        r = self.random
        kind = r.choice([0, 1, 2, 3, 0x11, 0x100, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108, 0x10A, 0x10C, 0x120, 0x121, 0x122,
                         0x161, 0x162, 0x163, 0x170, 0x171, 0x172, 0x180, 0x181, 0x202, 0x210, 0x600, 0x40000211, 0x40000600,
                         0x80000000, self.number()])
        if r.random() < 0.1:
            return Attribute(kind, None, r.choice([0, 8, 2**64 - 1]))
        value = r.choice([b"\0", b"\1", b"\2", (4).to_bytes(8, "little"), (0x1F).to_bytes(8, "little"), (0x10).to_bytes(8, "little"),
                          (32).to_bytes(8, "little"), bytes.fromhex("06082a8648ce3d030107"), b"", r.randbytes(r.randrange(64))])
        if kind in (0x40000211,):
            value = b""
        data = ctypes.create_string_buffer(value, max(1, len(value)))
        self.keep.append(data)
        return Attribute(kind, ctypes.cast(data, P), len(value))

    def good_template(self):
        r = self.random
        pairs = [(0, (4).to_bytes(8, "little")), (0x100, r.choice([0x1F, 0x10]).to_bytes(8, "little")), (1, b"\0"), (0x162, b"\1"), (0x103, b"\0")]
        pairs.append(r.choice([(0x161, (32).to_bytes(8, "little")), (0x11, r.randbytes(32))]))
        pairs += [(flag, b"\1") for flag in (0x104, 0x105, 0x106, 0x107, 0x108, 0x10A, 0x10C) if r.random() < 0.7]
        made = []
        for kind, value in pairs:
            data = ctypes.create_string_buffer(value, len(value))
            self.keep.append(data)
            made.append(Attribute(kind, ctypes.cast(data, P), len(value)))
        return made

    def template(self):
        r = self.random
        if r.random() < 0.05:
            return None, r.choice([0, 0, 3, 2**64 - 1])
        made = self.good_template() if r.random() < 0.7 else []
        if r.random() < 0.5:
            made += [self.attribute() for _ in range(r.randrange(4))]
        array = (Attribute * max(1, len(made)))(*made)
        self.keep.append(array)
        return ctypes.cast(array, P), len(made)

    def mechanism(self):
        r = self.random
        if r.random() < 0.03:
            return None
        kind = r.choice([0x1080, 0x350, 0x1081, 0x1082, 0x1085, 0x1086, 0x1087, 0x1088, 0x108A, 0x2109, 0x210B, 0x250, 0x251, 0x270, 0x271,
                         0x260, 0x2B0, 0x1, 0x3, 0x9, 0xD, 0x40, 0x1040, 0x1041, 0x1044, 0x1050, 0x1057, 0x1104, 0x1105, 0x402A, 0x3AC,
                         0x1055, self.number()])
        fitting = {0x1082: 16, 0x1085: 16, 0x108B: 8, 0x1086: 24}.get(kind, 0)
        # What is inside a parameter would have to be valid pointers: structures are all zeros, or too long or too short.
        n = fitting if r.random() < 0.8 else r.choice([0, 1, 7, 8, 16, 24])
        parameter, n = (None, 0) if n == 0 else self.buffer(n)
        if n == 24 and kind != 0x1086:
            parameter = ctypes.cast(ctypes.create_string_buffer(24), P)
        made = Mechanism(kind, parameter, n)
        self.keep.append((made, parameter))
        return ctypes.cast(ctypes.byref(made), P)

    def arguments(self, kinds):
        r, made, outputs = self.random, [], []
        for kind in kinds:
            if kind == "s":
                made.append(r.choice(self.sessions) if r.random() < 0.98 else self.number())
            elif kind == "h":
                made.append(r.choice(self.objects) if self.objects and r.random() < 0.95 else self.number())
            elif kind == "c":
                made.append(r.choice([0, 0, 0, 1, self.number()]))
            elif kind == "u":
                made.append(r.choice([0x1087, 0x250, self.number()]))
            elif kind == "m":
                made.append(self.mechanism())
            elif kind == "t":
                made += self.template()
            elif kind == "a":
                wanted = [self.attribute() for _ in range(r.randrange(1, 4))]
                for one in wanted:
                    one.value, one.len = (None, 0) if r.random() < 0.5 else self.buffer(r.choice([1, 8, 300]))
                array = (Attribute * len(wanted))(*wanted)
                self.keep.append(array)
                made += [ctypes.cast(array, P), len(wanted)]
            elif kind == "i":
                made += [None, r.choice([0, 0, 5])] if r.random() < 0.1 else self.buffer(r.choice([0, 1, 15, 16, 32, 40, 64, 1000]))
            elif kind == "o":
                n = r.choice([0, 8, 16, 64, 300, 2000])
                room = U(n)
                self.keep.append(room)
                pointer = None if r.random() < 0.2 else self.buffer(n)[0]
                made += [pointer, None if r.random() < 0.03 else ctypes.cast(ctypes.byref(room), P)]
            elif kind == "H":
                handle = U()
                outputs.append(handle)
                made.append(None if r.random() < 0.03 else ctypes.cast(ctypes.byref(handle), P))
            elif kind == "N":
                room = U()
                self.keep.append(room)
                made.append(None if r.random() < 0.1 else ctypes.cast(ctypes.byref(room), P))
            elif kind == "O":
                made.append(None if r.random() < 0.1 else self.buffer(512)[0])
            elif kind == "F":
                count = U()
                self.keep.append(count)
                made += [self.buffer(80)[0], r.choice([0, 1, 10]), ctypes.cast(ctypes.byref(count), P)]
        return made + [None] * (10 - len(made)), outputs

    def run(self):
        self.sessions = [open_session(writes) for writes in (True, True, False)]
        names = list(KINDS)
        for _ in range(self.calls):
            self.keep = []
            name = self.random.choice(names)
            if len(self.objects) < 8 and self.random.random() < 0.5:
                name = self.random.choice(["CreateObject", "GenerateKey"])
            if len(self.objects) > 64 and name != "DestroyObject":
                self.objects.pop(0)
            arguments, outputs = self.arguments(KINDS[name])
            result = call[name](*arguments)
            self.counts[result] = self.counts.get(result, 0) + 1
            allowed = set(GENERAL) | OF_FUNCTION.get(name, set())
            for kind in KINDS[name]:
                allowed |= ARGUMENT_ERRORS.get(kind, set())
            if result not in allowed:
                self.wrong.append(f"C_{name}: {result:#x}")
            if result == OK:
                self.objects += [handle.value for handle in outputs if handle.value]

def in_child(status_of):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(status_of())
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(99)
    return pid

def child():
    """Nothing of the parent is there; a start of its own makes everything work, whatever other threads held when it was forked."""
    for name in NAMES:
        if name in ("Initialize", "GetFunctionList"):
            continue
        if call[name](*[None] * 10) != NOT_INITIALIZED:
            print(f"child: C_{name} does not say that it is not initialised", file=sys.stderr)
            return 1
    if call["Initialize"](*[None] * 10) != OK:
        return 2
    session = open_session()
    if login(session) != OK:
        return 3
    caller = Caller(SEED + os.getpid(), CALLS // 20)
    caller.run()
    if caller.wrong:
        print("child:", caller.wrong[:5], file=sys.stderr)
        return 4
    return 0 if call["Finalize"](*[None] * 10) == OK else 5

def make_token_object(session):
    caller, handle = Caller(0, 0), U()
    pairs = [(0, (4).to_bytes(8, "little")), (0x100, (0x1F).to_bytes(8, "little")), (1, b"\1"), (0x161, (32).to_bytes(8, "little"))]
    made = []
    for kind, value in pairs:
        data = ctypes.create_string_buffer(value, len(value))
        caller.keep.append(data)
        made.append(Attribute(kind, ctypes.cast(data, P), len(value)))
    array, mechanism = (Attribute * len(made))(*made), Mechanism(0x1080, None, 0)
    result = call["GenerateKey"](session, ctypes.byref(mechanism), array, len(made), ctypes.byref(handle), *[None] * 5)
    return result, handle.value

def main():
    assert call["Initialize"](*[None] * 10) == OK
    first = open_session()
    assert login(first) == OK
    callers = [Caller(SEED * 1000 + n, CALLS // THREADS) for n in range(THREADS)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    stop, trouble, writes = threading.Event(), [], [0]

    def write():
        # Holds the store's lock most of the time: children are forked while it does.
        session = open_session()
        while not stop.is_set():
            result, handle = make_token_object(session)
            if result == OK:
                result = call["DestroyObject"](session, handle, *[None] * 8)
            if result != OK:
                trouble.append(f"writer: {result:#x}")
                return
            writes[0] += 1

    writer = threading.Thread(target=write)
    for thread in threads + [writer]:
        thread.start()
    children = []
    for _ in range(5):
        time.sleep(0.1)
        children.append(in_child(child))
        # One that does nothing but live has inherited whatever was open.
        children.append(in_child(lambda: time.sleep(3) or 0))
    for thread in threads:
        thread.join()
    trouble += [f"child ended with {status}" for status in (os.waitpid(pid, 0)[1] for pid in children) if status]
    stop.set()
    writer.join()
    assert call["Finalize"](*[None] * 10) == OK
    wrong = sorted({wrong for caller in callers for wrong in caller.wrong}) + trouble
    counts = {}
    for caller in callers:
        for code, n in caller.counts.items():
            counts[code] = counts.get(code, 0) + n
    print("calls", sum(counts.values()), "successful", counts.get(OK, 0), "codes", len(counts), "writes", writes[0])
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    os._exit(1 if wrong else 0)

main()
