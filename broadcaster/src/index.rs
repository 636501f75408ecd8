//! Which groups want an event: found by device, by event type, or because they want everything of their
//! tenant, so that ten thousand subscriptions to a device each cost an event what one does.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use pulsestream_shared::event::{ClientId, DeviceId};

use crate::filter::{Audience, Filter};
use crate::group::Group;
use crate::range::LiveEvent;

#[derive(Default)]
struct Shelves {
    by_device: HashMap<DeviceId, Vec<Arc<Group>>>,
    by_type: HashMap<Bytes, Vec<Arc<Group>>>,
    all: Vec<Arc<Group>>,
}

/// Every group.
#[derive(Default)]
pub(crate) struct Index {
    groups: HashMap<Filter, Arc<Group>>,
    by_client: HashMap<ClientId, Shelves>,
    everybody: Shelves,
}

impl Index {
    pub(crate) fn find(&self, filter: &Filter) -> Option<&Arc<Group>> {
        self.groups.get(filter)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    pub(crate) fn add(&mut self, group: &Arc<Group>) {
        let filter = &group.filter;
        self.groups.insert(filter.clone(), group.clone());
        let shelves = match filter.audience {
            Audience::Client(client) => self.by_client.entry(client).or_default(),
            Audience::Everybody => &mut self.everybody,
        };
        if !filter.devices().is_empty() {
            for device in filter.devices() {
                shelves.by_device.entry(*device).or_default().push(group.clone());
            }
        } else if !filter.event_types().is_empty() {
            for event_type in filter.event_types() {
                let event_type = Bytes::copy_from_slice(event_type.as_bytes());
                shelves.by_type.entry(event_type).or_default().push(group.clone());
            }
        } else {
            shelves.all.push(group.clone());
        }
    }

    pub(crate) fn remove(&mut self, group: &Arc<Group>) {
        let filter = &group.filter;
        self.groups.remove(filter);
        match filter.audience {
            Audience::Everybody => self.everybody.remove(group),
            Audience::Client(client) => {
                if let Some(shelves) = self.by_client.get_mut(&client) {
                    shelves.remove(group);
                    if shelves.is_empty() {
                        self.by_client.remove(&client);
                    }
                }
            }
        }
    }

    /// Every group that wants the event, each once.
    pub(crate) fn wanting<'a>(
        &'a self,
        event: &'a LiveEvent,
    ) -> impl Iterator<Item = &'a Arc<Group>> {
        let shelves = self.by_client.get(&event.client).into_iter().chain([&self.everybody]);
        let candidates = shelves.flat_map(|shelves| {
            let by_device = shelves.by_device.get(&event.device).into_iter();
            let by_type = shelves.by_type.get(&event.event_type).into_iter();
            by_device.chain(by_type).flatten().chain(&shelves.all)
        });
        candidates.filter(|group| group.filter.wants(event))
    }
}

impl Shelves {
    fn remove(&mut self, group: &Arc<Group>) {
        let keep = |list: &mut Vec<Arc<Group>>| {
            list.retain(|other| !Arc::ptr_eq(other, group));
            !list.is_empty()
        };
        for device in group.filter.devices() {
            if self.by_device.get_mut(device).is_some_and(|list| !keep(list)) {
                self.by_device.remove(device);
            }
        }
        for event_type in group.filter.event_types() {
            if self.by_type.get_mut(event_type.as_bytes()).is_some_and(|list| !keep(list)) {
                self.by_type.remove(event_type.as_bytes());
            }
        }
        keep(&mut self.all);
    }

    fn is_empty(&self) -> bool {
        self.by_device.is_empty() && self.by_type.is_empty() && self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::tests::event;

    const DEVICE: &str = "deviceId=00000000-0000-0000-0000-000000000009";

    fn group(client: i32, query: &str) -> Arc<Group> {
        let filter = Filter::parse(Audience::Client(ClientId(client)), query).unwrap();
        Arc::new(Group::new(filter, 1_000, 0, 0))
    }

    #[test]
    fn every_group_that_wants_an_event_is_found_once_and_nothing_stays_of_those_removed() {
        let wanting = [
            group(7, ""),
            group(7, DEVICE),
            group(7, "eventType=cpu&eventType=mem"),
            group(7, &format!("{DEVICE}&eventType=cpu")),
        ];
        let others = [
            group(8, ""),
            group(7, "eventType=mem"),
            group(7, "deviceId=00000000-0000-0000-0000-000000000008"),
            group(7, &format!("{DEVICE}&eventType=mem")),
        ];
        let mut index = Index::default();
        wanting.iter().chain(&others).for_each(|group| index.add(group));
        let event = event(1, 1);
        let found: Vec<_> = index.wanting(&event).cloned().collect();
        assert_eq!(found.len(), wanting.len());
        assert!(wanting.iter().all(|group| found.iter().any(|other| Arc::ptr_eq(other, group))));
        wanting.iter().chain(&others).for_each(|group| index.remove(group));
        assert!(index.by_client.is_empty() && index.groups.is_empty());
    }
}
