-- How far the log was stored. These rows change in the transaction that stores the records, which is
-- what makes a redelivery, a zombie or a lost answer to COMMIT harmless.

-- One row a partition, updated with every batch: half of each page stays free, so that the new version
-- of a row finds room beside the old one (HOT) and the primary key is not touched.
create table consumer_offsets (
    grp        text        not null,
    topic      text        not null,
    part       int         not null,
    epoch      uuid        not null, -- the log whose offsets these are
    next       bigint      not null check (next >= 0),
    last_id    uuid,                 -- the event before `next`, compared with the log on assignment
    updated_at timestamptz not null,
    primary key (grp, topic, part)
) with (fillfactor = 50);

-- The judge of what is dead: copies on the dead-letter topic without a row here do not count. The epoch
-- belongs to the key, because in another epoch the same offset is another record.
create table dead_letters (
    topic      text        not null,
    part       int         not null,
    epoch      uuid        not null,
    off        bigint      not null,
    client_id  int,                  -- null: could not be read from the record
    id         uuid,                 -- likewise
    reason     text        not null,
    sqlstate   text,
    detail     text        not null,
    created_at timestamptz not null,
    primary key (topic, part, epoch, off)
);

-- "What became of my event?" asks by id.
create index dead_letters_event on dead_letters (client_id, id) where id is not null;
