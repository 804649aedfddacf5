//! The structs whose bincode bytes are the payloads of objects, of their directory and of its pages. Field order is format.

use bincode::{Decode, Encode};

use super::template::Plain;
use crate::format::payloads;
use crate::time::Timestamp;

/// Object `objects`, sealed: how new each page must be at least. Written after the page, before the root.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Directory {
    /// Number of objects.
    pub(crate) count: u64,
    /// Lowest revision of each page; 0 for one that was never written.
    pub(crate) pages: Vec<u64>,
}

/// Object `page.NNN` in the area `objects`, sealed: the objects whose ids begin with the page's number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub(crate) struct Page {
    /// Sorted by id.
    pub(crate) entries: Vec<Entry>,
}

/// What the directory knows of an object: enough to find it by class, label and id without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Entry {
    pub(crate) id: [u8; 16],
    /// Lowest revision of the object.
    pub(crate) revision: u64,
    pub(crate) class: u8,
    /// 0 private, 1 shared with somebody, 2 not private.
    pub(crate) visibility: u8,
    /// First 8 bytes of the SHA-256 of the owner's name, the label and the id.
    pub(crate) owner: u64,
    pub(crate) label: u64,
    pub(crate) cka_id: u64,
}

/// Object `key.UUID` in the area `objects`, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Record {
    pub(crate) id: [u8; 16],
    pub(crate) owner: String,
    pub(crate) created: Timestamp,
    /// PKCS#11 numbers of attributes and their values, sorted.
    pub(crate) attributes: Vec<(u32, Plain)>,
    /// The key (PKCS#8 for private keys) or the value of data and certificates, AES-KWP under the wrap key, so that no
    /// decoder ever holds it in clear; empty if there is none.
    pub(crate) secret: Vec<u8>,
    /// Users who may use the key, sorted.
    pub(crate) shared: Vec<String>,
    /// Approvals that a use needs; 0 for none.
    pub(crate) quorum_use: u8,
    /// Approvals that a change needs; 0 for none.
    pub(crate) quorum_manage: u8,
}

payloads!(Directory, Page, Record);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Payload;

    fn pin<T: Payload + PartialEq + std::fmt::Debug>(value: &T, want: &str) {
        let bytes = value.to_payload().unwrap();
        assert_eq!(hex::encode(&bytes), want.replace([' ', '\n'], ""));
        assert_eq!(&T::from_payload(1, &bytes).unwrap().unwrap(), value);
        assert!(T::from_payload(1, &bytes[..bytes.len() - 1]).unwrap().is_err());
        assert!(T::from_payload(2, &bytes).is_none());
    }

    #[test]
    fn a_directory_has_these_bytes() {
        pin(
            &Directory { count: 3, pages: vec![1, 0x0203] },
            "0300000000000000 0200000000000000 0100000000000000 0302000000000000",
        );
    }

    #[test]
    fn a_page_has_these_bytes() {
        let entry =
            Entry { id: [0x11; 16], revision: 5, class: 4, visibility: 1, owner: 6, label: 7, cka_id: 8 };
        pin(
            &Page { entries: vec![entry] },
            &format!(
                "0100000000000000 {} 0500000000000000 04 01 0600000000000000 0700000000000000 0800000000000000",
                "11".repeat(16)
            ),
        );
    }

    #[test]
    fn an_object_has_these_bytes() {
        let record = Record {
            id: [0x22; 16],
            owner: "u".into(),
            created: Timestamp::from_micros(9),
            attributes: vec![
                (0, Plain::Number(4)),
                (1, Plain::Bool(true)),
                (3, Plain::Bytes(b"k".to_vec())),
                (0x4000_0212, Plain::Template(vec![(0x162, Plain::Bool(false))])),
                (0x4000_0600, Plain::Mechanisms(vec![0x1087])),
            ],
            secret: vec![0x33; 2],
            shared: vec!["v".into()],
            quorum_use: 2,
            quorum_manage: 3,
        };
        pin(
            &record,
            &format!(
                "{} 0100000000000000 75 0900000000000000 0500000000000000
                 00000000 01000000 0400000000000000
                 01000000 00000000 01
                 03000000 02000000 0100000000000000 6b
                 12020040 04000000 0100000000000000 62010000 00000000 00
                 00060040 03000000 0100000000000000 8710000000000000
                 0200000000000000 3333 0100000000000000 0100000000000000 76 02 03",
                "22".repeat(16)
            ),
        );
    }

    proptest::proptest! {
        /// No payload makes a decoder crash or ask for memory without end.
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = Directory::from_payload(1, &bytes);
            let _ = Page::from_payload(1, &bytes);
            let _ = Record::from_payload(1, &bytes);
        }
    }
}
