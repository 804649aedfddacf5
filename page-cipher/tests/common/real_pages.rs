//! Pages that PostgreSQL 15.20 wrote in a new cluster with data checksums.

/// File and block, then the bytes that are not zero: offset and hexadecimal.
pub(crate) struct RealPage {
    pub(crate) file: &'static str,
    pub(crate) block: u32,
    pub(crate) bytes: &'static [(usize, &'static str)],
}

#[rustfmt::skip]
pub(crate) const PAGES: &[RealPage] = &[
    RealPage {
        file: "base/5/3079",
        block: 0,
        bytes: &[
            (4, "c03870017bf504001c00901f0020042000000000909fd2"),
            (8080, "a502"),
            (8096, "01000800030b183ff7340000706c706773716c"),
            (8172, "0a0000000b0000000009312e30"),
        ],
    },
    RealPage {
        file: "base/5/3534",
        block: 0,
        bytes: &[
            (4, "d0a60101752200004800f01ff01f0420000000006231050004"),
            (62, "f0bf"),
            (8188, "08"),
        ],
    },
    RealPage {
        file: "base/5/2757",
        block: 3,
        bytes: &[
            (4, "c0a403011fa100002000d81ff01f042000000000e89f1000d89f2000d89f20"),
            (8154, "0200010010207e28"),
            (8170, "010000000820"),
            (8184, "0100000002"),
        ],
    },
    RealPage {
        file: "base/5/3080",
        block: 1,
        bytes: &[
            (4, "c0f0460112b200001c00e01ff01f042000000000e09f20"),
            (8164, "01001000f734"),
            (8188, "03"),
        ],
    },
    RealPage {
        file: "base/5/3601_fsm",
        block: 0,
        bytes: &[
            (5, "946f01475900001800002000200420"),
            (28, "fbfb00fb000000fb"),
            (43, "fb"),
            (59, "fb"),
            (91, "fb"),
            (155, "fb"),
            (283, "fb"),
            (539, "fb"),
            (1051, "fb"),
            (2075, "fb"),
            (4123, "fb"),
        ],
    },
    RealPage {
        file: "base/5/2836_fsm",
        block: 1,
        bytes: &[
            (5, "7159018cc200001800002000200420"),
            (28, "6464006400000064"),
            (43, "64"),
            (59, "64"),
            (91, "64"),
            (155, "64"),
            (283, "64"),
            (539, "64"),
            (1051, "64"),
            (2075, "64"),
            (4123, "64"),
        ],
    },
    RealPage {
        file: "global/2396_vm",
        block: 0,
        bytes: &[
            (4, "98086d01657d00001800002000200420"),
        ],
    },
];
