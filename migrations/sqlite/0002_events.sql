-- Every event once.

-- A table with rowids, so that rows are appended in the order they come and only the indexes meet the
-- randomness of the ids.
create table events (
    rowid       integer primary key,
    id          blob    not null check (length(id) = 16),
    client_id   integer not null,
    device_id   blob    not null check (length(device_id) = 16),
    -- PostgreSQL refuses U+0000 by itself; a file must not hold what could not move to a server.
    event_type  text    not null check (instr(event_type, char(0)) = 0),
    value       real    not null, -- NaN is null to SQLite, hence refused
    ts          integer not null,
    metadata    text    check (instr(metadata, char(0)) = 0),
    received_at integer not null,
    pos         integer not null
) strict;

-- Nothing is partitioned here, so the key can be the promise itself: one event per client and id,
-- whatever its ts.
create unique index events_id on events (id, client_id);

-- History and newest value of a device.
create index events_device on events (client_id, device_id, ts desc);

-- Retention deletes by it and ranges of time are read by it; rows come nearly in this order, so it is
-- written at its end.
create index events_ts on events (ts);
