-- What Grafana and analysts read, and a role that may read nothing else.
--
-- Views and not grants on the tables: they say a client's name, which is what people know, and a table can change
-- under them. They join and nothing more: a condition on ts or on a client reaches the indexes and days of `events`
-- as if it had been asked of the table.
--
-- Not the id: who reads values needs none, and with it a page of events would be a list of used keys.
create view client_events as
select clients.name as client, device_id, event_type, value, ts, metadata, received_at
  from events join clients on clients.id = events.client_id;

create view client_dead_letters as
select clients.name as client, dead_letters.id, device_id, reason, sqlstate, detail, dead_letters.created_at, attempt
  from dead_letters left join clients on clients.id = dead_letters.client_id;

create view stored_places as
select part, next, updated_at from consumer_offsets where grp = 'pulsestream-store';

-- Nobody logs in as this role: an operator makes one that does, with a password of its own, and puts it in this one.
-- A role belongs to all databases of a server, so it may be there already. A user who may make no roles
-- (many a managed server) goes on without, and grants by hand what stands below.
do $$
begin
    create role pulsestream_reader nologin;
exception
    when duplicate_object or unique_violation then
        null;
    when insufficient_privilege then
        raise notice 'no role pulsestream_reader: % may not make roles', current_user;
end
$$;

do $$
begin
    if exists (select from pg_roles where rolname = 'pulsestream_reader') then
        grant select on client_events, client_dead_letters, stored_places to pulsestream_reader;
    end if;
end
$$;
