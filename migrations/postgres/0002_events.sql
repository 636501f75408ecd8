-- Every event once.

-- Partitioned by UTC day so that retention is DROP (no dead rows, no vacuum) and not DELETE. There is
-- deliberately no DEFAULT partition: it would make every ATTACH scan it under an exclusive lock, and
-- what fell into it would stay for ever. The day of a late event is made by the writer instead.
--
-- The key: a retry is byte-identical, so its ts is too and it meets its first copy here. Two clients
-- may use the same UUID. (id, client_id) alone cannot be a key of a table partitioned by ts; where the
-- same id may lie under another ts, the writer looks in all days first.
--
-- No CHECK on the values: what can be judged without the database is judged before it, and each
-- constraint is evaluated for every row of every batch.
create table events (
    id          uuid        not null,
    client_id   int         not null, -- no foreign key: a lookup per row; the consumer asks per batch
    device_id   uuid        not null,
    event_type  text        not null,
    value       float8      not null,
    ts          timestamptz not null, -- the device's clock
    metadata    jsonb,
    received_at timestamptz not null, -- the gateway's clock
    pos         bigint      not null, -- log offset; newest = greatest (ts, pos)
    primary key (id, client_id, ts)
) partition by range (ts);

-- History and newest value of a device.
create index events_device on events (client_id, device_id, ts desc);

-- Ranges of time within a day: a few kilobytes a day, because rows arrive nearly in the order of ts.
create index events_ts on events using brin (ts);

-- Any other index must pay for itself in a measurement: each costs 15-35 % of the insert rate.
