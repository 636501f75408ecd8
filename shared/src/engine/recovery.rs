//! What a start finds of an embedded pipeline that was killed, or whose machine lost its power.

use super::upkeep::stored_places;
use crate::log::embedded::EmbeddedLog;
use crate::store::EventStore;

/// Says so, once, after both files were opened: opening them is the recovery.
pub(super) async fn tell(log: &EmbeddedLog, store: &dyn EventStore) {
    let wal_bytes = log.left_bytes();
    if wal_bytes == 0 {
        return;
    }
    match stored_places(log, store).await {
        Ok(places) => {
            let records: i64 = places.iter().map(|(bounds, _)| bounds.next - bounds.first).sum();
            let unstored: i64 = places.iter().map(|(bounds, place)| bounds.next - place).sum();
            tracing::info!(
                wal_bytes,
                records,
                unstored,
                "the last pipeline on this folder did not end cleanly: recovered"
            );
        }
        Err(error) => tracing::warn!(%error, wal_bytes, "what was recovered cannot be told"),
    }
}
