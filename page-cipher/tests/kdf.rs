//! Key derivation, pinned: a change here would make every existing page unreadable.

mod common;

use common::{data_key, unhex};
use page_cipher::kdf::{Purpose, derive};

/// Expected values computed with another implementation (Python's `hmac` and `hashlib`).
#[test]
fn relation_keys_are_pinned() {
    let ids = |cipher, db: u32, rel: u32| {
        let mut ids = vec![cipher];
        ids.extend(db.to_le_bytes());
        ids.extend(rel.to_le_bytes());
        ids
    };
    let key = derive::<32>(&data_key(), Purpose::PG_PAGE, &[&ids(1, 5, 16384)]);
    assert_eq!(key.expose()[..], unhex("198a2e29674270964264c0aa01cb94902da36af28e6af6648aff640aec146f53"));
    let key = derive::<32>(&data_key(), Purpose::PG_PAGE, &[&ids(1, 0, 1262)]);
    assert_eq!(key.expose()[..], unhex("bfb70ac7c2377f9e9cf580567db988103386300c59cbfe5d0f4e1fb684ab00c7"));
    let key = derive::<64>(&data_key(), Purpose::PG_PAGE, &[&ids(2, 5, 16384)]);
    assert_eq!(
        key.expose()[..],
        unhex(
            "af738e216814f17868c5920146961b7d95ff6dd83a734f345066a7a90dcf3d76
             913e3a93fda5c4c625af21bba76b7aa27fc123afad71fc75de2458150170fdd3"
        )
    );
}

#[test]
fn ids_are_joined() {
    let joined = derive::<32>(&data_key(), Purpose::PG_PAGE, &[b"abc", b"de"]);
    let split = derive::<32>(&data_key(), Purpose::PG_PAGE, &[b"a", b"", b"bcde"]);
    assert!(joined.ct_eq(&split));
    assert!(!joined.ct_eq(&derive(&data_key(), Purpose::PG_PAGE, &[b"abcd"])));
}
