//! A blocked Bloom filter: tells of most keys that a run does not hold them, with one look at one cache
//! line. Its bytes are kept in the file, so its layout is fixed: 64-byte blocks, the block by the high
//! half of the hash, eight bits in it by the low half.

use super::outcome_run::RUN_KEYS;

const BLOCK_BYTES: usize = 64;
const BLOCK_BITS: u64 = 512;
const BITS_PER_KEY: usize = 16;
const BLOCKS: usize = RUN_KEYS * BITS_PER_KEY / 8 / BLOCK_BYTES;

/// Size of a filter.
pub(super) const FILTER_BYTES: usize = BLOCKS * BLOCK_BYTES;

/// A filter over the hashes of at most [`RUN_KEYS`] keys; wrong "maybe" for about one key in 500.
pub(super) struct Filter(Box<[u8]>);

impl Filter {
    pub(super) fn new(hashes: impl Iterator<Item = u64>) -> Self {
        let mut bits = vec![0_u8; FILTER_BYTES].into_boxed_slice();
        for hash in hashes {
            if let Some(block) = bits.as_chunks_mut::<BLOCK_BYTES>().0.get_mut(block_of(hash)) {
                for (byte, bit) in places(hash) {
                    block[byte] |= bit;
                }
            }
        }
        Self(bits)
    }

    /// `None` when these are not the bytes of a filter.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == FILTER_BYTES).then(|| Self(bytes.into()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let block = self.0.as_chunks::<BLOCK_BYTES>().0.get(block_of(hash));
        block.is_some_and(|block| places(hash).all(|(byte, bit)| block[byte] & bit != 0))
    }
}

fn block_of(hash: u64) -> usize {
    // The high half, scaled to the number of blocks.
    usize::try_from(((hash >> 32) * BLOCKS as u64) >> 32).unwrap_or(usize::MAX)
}

/// Byte and bit of the eight bits of a hash within its block.
fn places(hash: u64) -> impl Iterator<Item = (usize, u8)> {
    // An odd step visits eight different bits.
    let (start, step) = (hash & 0xffff, (hash >> 16) & 0xffff | 1);
    (0..8).map(move |n| {
        let bit = (start + n * step) % BLOCK_BITS;
        (usize::try_from(bit / 8).unwrap_or(0), 1 << (bit % 8))
    })
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    #[test]
    fn a_full_filter_never_denies_a_key_and_rarely_invents_one() {
        let hash = |n: usize| xxh3_64(&n.to_le_bytes());
        let filter = Filter::new((0..RUN_KEYS).map(hash));
        let filter = Filter::from_bytes(filter.as_bytes()).unwrap();
        assert!((0..RUN_KEYS).all(|n| filter.may_hold(hash(n))));
        let invented = (RUN_KEYS..3 * RUN_KEYS).filter(|n| filter.may_hold(hash(*n))).count();
        assert!(invented < RUN_KEYS / 200, "{invented} of {}", 2 * RUN_KEYS);
        assert!(Filter::from_bytes(&filter.as_bytes()[1..]).is_none());
    }
}
