//! Which partition a key belongs to: the Java client's murmur2, so that every Kafka producer in any
//! language, told to use `murmur2_random`, puts a device where we do.

use super::Partition;

/// The partition of `key` in a topic of `partitions` partitions.
///
/// # Panics
/// When `partitions` is 0: a topic has at least one.
pub fn partition_of(key: &[u8], partitions: u32) -> Partition {
    let positive = murmur2(key) & 0x7fff_ffff;
    Partition::try_from(positive % partitions).expect("below 2^31 after the mask")
}

/// MurmurHash2, 32 bit, with the seed of Kafka's Java client.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Kafka hashes the length as a 32-bit integer; longer keys do not exist.
    #[expect(clippy::cast_possible_truncation, reason = "the algorithm's own truncation")]
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_gives_the_values_of_the_java_client() {
        // From the Java client's own unit test of its hash function.
        let expected: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, hash) in expected {
            assert_eq!(murmur2(key) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn one_key_has_one_partition_and_all_partitions_are_used() {
        let mut used = [false; 12];
        for n in 0..1_000u128 {
            let key = uuid::Uuid::from_u128(n * 7_919).to_string();
            let partition = partition_of(key.as_bytes(), 12);
            assert_eq!(partition, partition_of(key.as_bytes(), 12));
            used[usize::try_from(partition).unwrap()] = true;
        }
        assert_eq!(used, [true; 12]);
    }
}
