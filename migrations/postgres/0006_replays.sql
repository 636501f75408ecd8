-- What a person needs to work with a dead letter: where its bytes are, and what became of a replay.
--
-- All columns may be null or have a default, so the release before goes on writing letters beside this one.
-- One it wrote knows no copy: its bytes are on the topic, and commands cannot say where.
--
-- No index: commands walk by the primary key, and whoever lists the newest sorts once.
alter table dead_letters
    add column device_id uuid,                    -- the record's key, when it is a device
    add column attempt   int  not null default 1, -- how often it died, this time included
    -- Its copy on the dead-letter topic. Looked up by place: the topic is never searched, so copies that
    -- have no row, and repeats of one, are never seen.
    add column copy_part int,
    add column copy_off  bigint,
    -- The record of its last replay. It waits there as long as the store has not passed that place. The
    -- batch that stores it deletes this row; one that finds it dead again changes this row, which keeps its
    -- key. A row whose replay was passed, or lies in another epoch, is dead: again, or as before, because the
    -- replay was lost with its log. Hence no column that says so: it could be wrong.
    add column replay_part  int,
    add column replay_epoch uuid,
    add column replay_off   bigint;
