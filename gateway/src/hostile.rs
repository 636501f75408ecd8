//! Hostile input for the tests of what reads bytes from outside: kept seeds, changed at random.
//!
//! `seeds/KIND/` holds one input a file. Tests named `fuzz` read changed seeds and hold what comes out
//! against a second, slower reading. A run is bounded; `PROPTEST_CASES=100000 cargo test --release -p
//! pulsestream-gateway fuzz` looks longer. What a failure shrinks to belongs into the seeds.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use pulsestream_shared::config::{self, Config};

/// What breaks readers, and the words they look for.
const TOKENS: [&[u8]; 44] = [
    b"",
    b"\0",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\\\u0000",
    b"\\ud800",
    b"\\u00e9",
    b"{",
    b"}",
    b"[",
    b"]",
    b"{}",
    b"[]",
    b",",
    b":",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b";",
    b"=",
    b"&",
    b"%",
    b"%00",
    b"%ff",
    b"+",
    b"\xff",
    b"\xc0\x80",
    b"\xef\xbb\xbf",
    b"null",
    b"true",
    b"NaN",
    b"-",
    b"-0",
    b"0x1",
    b"1e999",
    b"1e-999999",
    b"9223372036854775808",
    b"\"id\":",
    b"\"metadata\":",
    b"\"events\":",
    b"gzip",
    b"00000000-0000-4000-8000-000000000009",
];

/// The defaults, read once: thousands of cases ask for them.
pub(crate) static CONFIG: LazyLock<Config> =
    LazyLock::new(|| config::load(None, std::iter::empty(), &[]).unwrap().config);

/// Bytes that a failing test shows as text.
#[derive(Clone)]
pub(crate) struct Hostile(Vec<u8>);

impl Deref for Hostile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// Eight times as many cases as elsewhere.
pub(crate) fn cases() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.saturating_mul(8), ..usual }
}

/// Changed seeds of a kind.
pub(crate) fn hostile(kind: &str) -> impl Strategy<Value = Hostile> {
    changed(seeds(kind))
}

/// These, changed: none to five times, or the beginning of one with the end of another.
pub(crate) fn changed(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Hostile> {
    let one = select(seeds.clone());
    let two = (select(seeds.clone()), select(seeds), any::<Index>(), any::<Index>());
    let spliced = two.prop_map(|(start, end, upto, from)| {
        let (start, _) = start.split_at(upto.index(start.len() + 1));
        let (_, end) = end.split_at(from.index(end.len() + 1));
        [start, end].concat()
    });
    let begun = prop_oneof![4 => one, 1 => spliced];
    (begun, vec(change(), 0..6)).prop_map(|(mut bytes, changes)| {
        for change in changes {
            change.apply(&mut bytes);
        }
        Hostile(bytes)
    })
}

/// The seeds as they are kept, in the order of their names.
fn seeds(kind: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(kind);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder:?} holds no seeds");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Replace(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, Index),
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let token = || {
        let nested = (select(vec![&b"["[..], b"{\"a\":", b"\""]), 100..300_usize);
        prop_oneof![
            8 => select(TOKENS.to_vec()).prop_map(<[u8]>::to_vec),
            2 => vec(any::<u8>(), 1..4),
            1 => nested.prop_map(|(token, times)| token.repeat(times)),
        ]
    };
    let place = any::<Index>;
    prop_oneof![
        (place(), 0..8_u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (place(), token()).prop_map(|(at, token)| Change::Insert(at, token)),
        (place(), token()).prop_map(|(at, token)| Change::Replace(at, token)),
        (place(), 1..20_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (place(), 1..200_usize, place())
            .prop_map(|(at, length, to)| Change::Repeat(at, length, to)),
        place().prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match self {
            Self::Flip(at, bit) if length > 0 => bytes[at.index(length)] ^= 1 << bit,
            Self::Flip(..) => {}
            Self::Insert(at, token) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, token);
            }
            Self::Replace(at, token) => {
                let at = at.index(length + 1);
                bytes.splice(at..length.min(at + token.len()), token);
            }
            Self::Remove(at, count) => {
                let at = at.index(length + 1);
                bytes.drain(at..length.min(at + count));
            }
            Self::Repeat(at, count, to) => {
                let at = at.index(length + 1);
                let slice = bytes[at..length.min(at + count)].to_vec();
                let to = to.index(length + 1);
                bytes.splice(to..to, slice);
            }
            Self::Cut(at) => bytes.truncate(at.index(length + 1)),
        }
    }
}
