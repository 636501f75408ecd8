-- Ids that may be taken by a row of another day. The key of `events` holds `ts`, so an id that was accepted
-- twice, with two bodies, meets itself only where the writer looks in all days. It looks where the gateway
-- marked a record (unsure); these tables tell it which other records it must look up as well, because they
-- came after a marked one and are not marked themselves.

-- What one gateway accepted under a lock of its own, while it did not reach Redis. Another gateway may have
-- given the same key away, or may yet, for as long as Redis keeps a key: a day. The record of that one is
-- not marked.
--
-- A table and no column of `events`: a partial index there is one look-up a day of retention for each row,
-- of all batches; this is one look-up, and none when nothing was accepted so for a day.
create table unsure_keys (
    id          uuid        not null,
    client_id   int         not null,
    accepted_at timestamptz not null,
    primary key (id, client_id)
);

-- The newest is asked for by every batch; the oldest are removed with the days of `events`.
create index unsure_keys_accepted on unsure_keys (accepted_at);

-- When Redis lost the keys it knew. What was accepted before and is stored only now has no mark, and an id
-- that was given away again since may be stored already. A row a loss: a handful a year.
create table key_losses (
    at timestamptz primary key
);
