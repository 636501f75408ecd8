//! Who of a group's members has which partitions. In process, so a hand-over is immediate: the loser is
//! told and gets nothing more in the same instant in which the winner is told.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::delivery::Delivery;
use crate::log::Partition;

/// Groups and their members, in the order in which they joined.
#[derive(Debug)]
pub(super) struct Coordinator {
    partitions: Partition,
    groups: HashMap<Arc<str>, Vec<Member>>,
}

#[derive(Debug)]
struct Member {
    delivery: Arc<Delivery>,
    owned: BTreeSet<Partition>,
}

impl Coordinator {
    pub(super) fn new(partitions: Partition) -> Self {
        Self { partitions, groups: HashMap::new() }
    }

    pub(super) fn join(&mut self, group: &Arc<str>, delivery: Arc<Delivery>) {
        let members = self.groups.entry(Arc::clone(group)).or_default();
        members.push(Member { delivery, owned: BTreeSet::new() });
        balance(members, self.partitions);
    }

    pub(super) fn leave(&mut self, group: &Arc<str>, delivery: &Arc<Delivery>) {
        let Some(members) = self.groups.get_mut(group) else { return };
        members.retain(|member| !Arc::ptr_eq(&member.delivery, delivery));
        if members.is_empty() {
            self.groups.remove(group);
        } else {
            balance(members, self.partitions);
        }
    }
}

/// Moves as few partitions as an even split allows; revokes before it assigns.
fn balance(members: &mut [Member], partitions: Partition) {
    let count = usize::try_from(partitions).unwrap_or_default();
    let (share, extra) = (count / members.len(), count % members.len());
    let quota = |index: usize| share + usize::from(index < extra);
    let mut free: BTreeSet<Partition> = (0..partitions).collect();
    for (index, member) in members.iter_mut().enumerate() {
        let mut revoked = Vec::new();
        while member.owned.len() > quota(index) {
            revoked.extend(member.owned.pop_last());
        }
        member.owned.iter().for_each(|kept| {
            free.remove(kept);
        });
        if !revoked.is_empty() {
            revoked.reverse();
            member.delivery.revoke(revoked);
        }
    }
    for (index, member) in members.iter_mut().enumerate() {
        let missing = quota(index).saturating_sub(member.owned.len());
        let assigned: Vec<Partition> = (0..missing).map_while(|_| free.pop_first()).collect();
        if !assigned.is_empty() {
            member.owned.extend(&assigned);
            member.delivery.assign(assigned);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_partition_has_one_owner_and_the_split_is_even(
            partitions in 1..20i32,
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..40),
        ) {
            let mut coordinator = Coordinator::new(partitions);
            let group: Arc<str> = "group".into();
            let mut present: Vec<Arc<Delivery>> = Vec::new();
            for (join, which) in steps {
                if join || present.is_empty() {
                    let delivery = Arc::new(Delivery::default());
                    present.push(Arc::clone(&delivery));
                    coordinator.join(&group, delivery);
                } else {
                    let gone = present.remove(which.index(present.len()));
                    coordinator.leave(&group, &gone);
                }
                let Some(members) = coordinator.groups.get(&group) else { continue };
                let owned: Vec<usize> = members.iter().map(|member| member.owned.len()).collect();
                let all: BTreeSet<_> = members.iter().flat_map(|m| m.owned.clone()).collect();
                prop_assert_eq!(all.len(), usize::try_from(partitions).unwrap());
                prop_assert_eq!(owned.iter().sum::<usize>(), all.len());
                let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
                prop_assert!(most - least <= 1);
            }
        }
    }
}
