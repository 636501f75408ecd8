//! The live messages of one publish as one message of Redis: what a burst of events brings is a record or two of each
//! partition, and a message costs Redis and each subscriber more than such a record.
//!
//! ```text
//! partition i32 | length u32 | that many bytes, and so on, little-endian
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::log::Partition;

/// One message of these, in their order; `None` when there are none.
pub(super) fn pack<'a>(
    messages: impl Iterator<Item = (Partition, &'a Bytes)> + Clone,
) -> Option<Bytes> {
    let bytes = messages.clone().map(|(_, message)| HEAD_BYTES + message.len()).sum();
    let mut packed = BytesMut::with_capacity(bytes);
    for (partition, message) in messages {
        packed.put_i32_le(partition);
        packed.put_u32_le(u32::try_from(message.len()).expect("far below 4 GiB"));
        packed.put_slice(message);
    }
    (!packed.is_empty()).then(|| packed.freeze())
}

/// What was packed; ends early where it is damaged.
pub(super) fn unpack(mut packed: Bytes) -> impl Iterator<Item = (Partition, Bytes)> {
    std::iter::from_fn(move || {
        let partition = packed.try_get_i32_le().ok()?;
        let length = packed.try_get_u32_le().ok()? as usize;
        (packed.len() >= length).then(|| (partition, packed.split_to(length)))
    })
}

const HEAD_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> impl Strategy<Value = Vec<(Partition, Bytes)>> {
        let message = prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        prop::collection::vec((any::<Partition>(), message), 0..10)
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_and_of_a_piece_of_it_the_beginning(
            messages in messages(), part in 0.0..1.0f64,
        ) {
            let each = messages.iter().map(|(partition, message)| (*partition, message));
            let packed = pack(each).unwrap_or_default();
            let cut = packed.slice(..(packed.len() as f64 * part) as usize);
            prop_assert_eq!(unpack(packed).collect::<Vec<_>>(), messages.clone());
            let of_it: Vec<_> = unpack(cut).collect();
            prop_assert_eq!(&of_it[..], &messages[..of_it.len()]);
        }
    }
}
