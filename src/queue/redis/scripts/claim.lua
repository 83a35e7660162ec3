-- claim(me, call, messages, bytes, returning, new lanes, failed lanes, of these slow ones, probe ms, fragile, suspects,
--       gravest, ordered, again, largest, popped?, popped, highest number seen, the number of the orders that it knows,
--       {origin, n, free}...)
--   -> {state, now, due in (-1: nothing is), more, emptied origins, failures of probed lanes, messages, oversized,
--       the id before the first new one, new messages, odd entries, the last number given out,
--       {number, orders} if the agent knows others}
-- Takes due retries, one message each of lanes that failed and may be tried again, messages of lanes
-- that the agent wants, one each of lanes that never failed, then from the left of K, until a bound.
-- Messages come flat as id, bytes, history, recovered, source: k (queue, given again), o (waiting, its lane
-- is open), p (waiting, a probe), r (retry).
local me, call = ARGV[1], ARGV[2]
local max_messages, max_bytes, max_returning = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local new_probes, failed_probes, slow_probes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local probe_ms, fragile = tonumber(ARGV[9]), tonumber(ARGV[10])
local suspects_out, gravest = tonumber(ARGV[11]), tonumber(ARGV[12])
local ordered, again = ARGV[13] == '1', ARGV[14] == '1'
local largest = tonumber(ARGV[15])
local popped = ARGV[16] == '1' and ARGV[17]
local seen_number, known_orders = tonumber(ARGV[18]), ARGV[19]
local WANTS = 20
assert(largest and max_messages and max_bytes and max_returning and new_probes and failed_probes and slow_probes)
assert(seen_number and known_orders and probe_ms and fragile and suspects_out and gravest and tonumber(call))
for i = WANTS, #ARGV, 3 do assert(tonumber(ARGV[i + 1]) and tonumber(ARGV[i + 2])) end

if not redis.call('ZSCORE', AGENTS, me) then return {'gone'} end
local messages, ids, sources, bytes = {}, {}, {}, 0
local function give(id, body, history, recovered, source)
  local n = #messages
  messages[n + 1], messages[n + 2], messages[n + 3], messages[n + 4], messages[n + 5] =
    id, body, history or '', tostring(recovered), source
  ids[#ids + 1], sources[#sources + 1] = id, source
  bytes = bytes + #body
end

local last, orders_number = unpack(redis.call('HMGET', CALLS, me, 'ordered'))
local function orders_news()
  orders_number = orders_number or '0'
  if orders_number ~= known_orders then return {orders_number, redis.call('HGET', CALLS, 'orders') or ''} end
end

-- The answer to this very call was lost: the same batch again.
if last and string.match(last, '^%d+') == call then
  open_for_writing() -- a master that was demoted meanwhile answers nothing
  for id, source in string.gmatch(last, ' (%d+)(%a)') do
    local owner = is_id(id) and redis.call('ZSCORE', INFLIGHT, id)
    local body = owner and tonumber(owner) == tonumber(me) and redis.call('HGET', MESSAGES, id)
    if body then give(id, body, redis.call('HGET', HISTORY, id), count_of(redis.call('HGET', RECOVERED, id) or '0'), source) end
  end
  return {'again', now, 0, 1, {}, {}, messages, {}, '0', {}, odd, '0', orders_news()}
end

-- A call that was overtaken on a connection given up long ago must not claim for nobody.
if last and tonumber(string.match(last, '^%d+') or 0) > tonumber(call) then return {'old'} end

-- Strict order: one agent at a time, the oldest, and only once nobody else has anything in flight.
local function owner_of_one(command, first, last)
  for from = 0, 99 do
    local one = redis.call(command, INFLIGHT, first, last, 'WITHSCORES', 'LIMIT', from, 1)
    if not one[2] or is_id(one[1]) and tonumber(one[2]) % 1 == 0 then return one[2] end
  end
end
local function is_standby()
  for _, other in ipairs(redis.call('ZRANGE', AGENTS, 0, -1)) do
    if other < me and is_id(other) then return true end
  end
  local low = owner_of_one('ZRANGEBYSCORE', 1, HIGHEST)
  return low and (tonumber(low) ~= tonumber(me) or tonumber(owner_of_one('ZREVRANGEBYSCORE', HIGHEST, 1)) ~= tonumber(me))
end
if ordered and is_standby() then
  if again then
    -- The first of this call may still be on its way: it must not claim for nobody once the older agent is gone.
    open_for_writing()
    redis.call('HSET', CALLS, me, call)
  end
  return {'standby'}
end

check_types()
local any_recovered = redis.call('HLEN', RECOVERED) > 0
-- What was in flight in an agent that died is given out only as far as it goes out at once, and the more
-- agents died of one, the fewer of such are out together.
local most_suspects = {[2] = 16, [3] = 4, [4] = 1}
local function may_go(deaths)
  if deaths == 0 then return true end
  if fragile <= 0 then return false end
  return deaths < 2 or suspects_out < most_suspects[math.min(4, math.max(deaths, gravest))]
end
local function goes(deaths)
  if deaths == 0 then return end
  fragile = fragile - 1
  if deaths >= 2 then suspects_out, gravest = suspects_out + 1, math.max(gravest, deaths) end
end

local n_queued = redis.call('LLEN', K) + (popped and 1 or 0)
if n_queued == 0 then max_returning = max_messages end
local returning_bytes = n_queued > 0 and max_bytes / 2 or max_bytes

-- Retries. In ordered mode all of them, due or not, and nothing beside them: they
-- are filed under their lanes before anything newer is attempted.
local retried, strays, no_ids, passed_over = {}, {}, {}, false
local max_retries = max_returning
if not ordered and redis.call('ZCARD', LANES) > 0 then max_retries = math.ceil(max_returning / 2) end
if ordered then max_retries = max_messages end
local seen, full = 0, false
local retry_until = ordered and '(' .. whole(NEVER) or now
while #retried < max_retries and bytes < returning_bytes and not full do
  local want = math.min(16, max_retries - #retried)
  local due = redis.call('ZRANGEBYSCORE', RETRY, '-inf', retry_until, 'LIMIT', seen, want)
  if #due == 0 then break end
  seen = seen + #due
  local deaths = any_recovered and redis.call('HMGET', RECOVERED, unpack(due)) or {}
  for i, id in ipairs(due) do
    if bytes >= returning_bytes then full = true break end
    local died = deaths[i] and count_of(deaths[i]) or 0
    if not is_id(id) then no_ids[#no_ids + 1] = id
    elseif not ordered and not may_go(died) then passed_over = true
    else
      local body = redis.call('HGET', MESSAGES, id)
      if not body then strays[#strays + 1] = id
      else
        if not ordered then goes(died) end
        retried[#retried + 1] = id
        give(id, body, redis.call('HGET', HISTORY, id), died, 'r')
      end
    end
  end
  if seen > 2000 then break end
end

local left, emptied, moved_lanes, failures, no_lanes = {}, {}, {}, {}, 0
-- `free`: how many of the lane go out at once; one that no agent died of may be held.
local function take_from(origin, n, free, source)
  local room = math.min(n, max_returning - #ids)
  if room <= 0 or bytes >= returning_bytes then return 0 end
  -- Every second failure in a row the newest is tried: the oldest may be the very ones that are bad.
  local failed = source == 'p' and redis.call('HGET', FAILURES, origin)
  local newest = failed and not ordered and count_of(failed) % 2 == 0
  local members = newest and newest_waiting_of(origin, room + 1) or waiting_of(origin, room + 1)
  local taken = 0
  for i = 1, math.min(room, #members) do
    if bytes >= returning_bytes then break end
    local id = string.sub(members[i], -16)
    local died = any_recovered and count_of(redis.call('HGET', RECOVERED, id) or '0') or 0
    if died > 0 and (free <= 0 or not may_go(died)) then passed_over = true break end
    local body = redis.call('HGET', MESSAGES, id)
    if body then
      goes(died)
      free = free - 1
      give(id, body, redis.call('HGET', HISTORY, id), died, source)
    end
    left[#left + 1] = members[i]
    taken = taken + 1
  end
  if taken == #members then
    -- One for which nothing waits is none: it would be looked at for ever.
    if taken == 0 then no_lanes, odd = no_lanes + 1, odd + 1 end
    emptied[#emptied + 1] = origin
  elseif source == 'p' then
    -- Nobody else tries it while this attempt is under way; one whose message must wait is looked at again soon.
    moved_lanes[#moved_lanes + 1] = taken > 0 and probed_until(now + probe_ms) or due_at(now + 100)
    moved_lanes[#moved_lanes + 1] = origin
  end
  if taken > 0 and failed then failures[#failures + 1] = origin failures[#failures + 1] = failed end
  return taken
end

-- Lanes that failed and may be tried: those due last and those due first in turn, so that one that is well again
-- need not wait for all that are not; those that fail fast before those that fail slowly. They are first, but a few:
-- proven lanes with a backlog would leave them nothing.
local lanes_left = false
local function try_failed()
  local most = math.max(1, math.ceil(max_returning / 4))
  if failed_probes < most then most = failed_probes end
  local n = math.min(64, 2 * most + 1)
  local due = {redis.call('ZREVRANGEBYSCORE', LANES, now, '(0', 'LIMIT', 0, n),
    redis.call('ZRANGEBYSCORE', LANES, '(0', now, 'LIMIT', 0, n)}
  local found, known = {}, {}
  for i = 1, n do
    for _, list in ipairs(due) do
      local origin = list[i]
      if origin and not known[origin] then known[origin] = true found[#found + 1] = origin end
    end
  end
  if #found == 0 then return end
  local records = redis.call('HMGET', FAILURES, unpack(found))
  local function take_all(slowly)
    for i, origin in ipairs(found) do
      if (fails_slowly(records[i]) and true or false) == slowly then
        if most <= 0 or slowly and slow_probes <= 0 or bytes >= returning_bytes then lanes_left = true return end
        if take_from(origin, 1, 1, 'p') > 0 then
          most = most - 1
          if slowly then slow_probes = slow_probes - 1 end
        end
      end
    end
  end
  take_all(false)
  take_all(true)
end
local files_first = ordered and #ids > 0
if not files_first and not waiting_can_be_seen() then lanes_left = true
elseif not files_first then
  try_failed()
  local wanted, n_wanted = {}, 0
  for i = WANTS, #ARGV, 3 do
    local origin = ARGV[i]
    wanted[origin] = true
    n_wanted = n_wanted + 1
    local due = redis.call('ZSCORE', LANES, origin)
    if not due then emptied[#emptied + 1] = origin
    elseif tonumber(due) <= 0 then take_from(origin, tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), 'o') end
  end
  local n_probed = 0
  local due = redis.call('ZRANGEBYSCORE', LANES, '-inf', 0, 'WITHSCORES', 'LIMIT', 0, new_probes + n_wanted + 1)
  for i = 1, #due, 2 do
    if not wanted[due[i]] then
      if n_probed >= new_probes or #ids >= max_returning or bytes >= returning_bytes then lanes_left = true break end
      local source = tonumber(due[i + 1]) == 0 and 'o' or 'p'
      if take_from(due[i], 1, 1, source) > 0 then n_probed = n_probed + 1 end
    end
  end
end

-- From the left of K, in growing steps: the size of what comes is not known before.
-- One too large for an agent to hold is dead at once: it would be in the way of every claim.
local fresh, oversized, from_k, largest_seen = {}, {}, 0, 0
local function take(body)
  largest_seen = math.max(largest_seen, #body)
  if #body > largest then oversized[#oversized + 1] = body
  else fresh[#fresh + 1] = body bytes = bytes + #body end
end
if popped then take(popped) end
if not (ordered and #retried > 0) then
  while #ids + #fresh < max_messages and bytes < max_bytes and #oversized == 0 do
    -- Never many at once: a page is read whole, however large its messages turn out to be.
    local want = math.min(math.max(1, from_k), largest_seen > 65536 and 1 or 4, max_messages - #ids - #fresh)
    local values = redis.call('LRANGE', K, from_k, from_k + want - 1)
    for i = 1, #values do
      if bytes >= max_bytes then break end
      take(values[i])
      from_k = from_k + 1
    end
    if #values < want then break end
  end
end

local buried, base = {}, 0
odd = odd + #no_ids
if #ids + #fresh + #oversized + #strays + #no_ids + #moved_lanes + #left + no_lanes > 0 or again then
  open_for_writing()
  if #fresh > 0 then
    base = next_numbers(#fresh, seen_number)
    local pairs_, n = {}, #ids
    for i, body in ipairs(fresh) do
      local id = string.format('%016.0f', base + i)
      pairs_[2 * i - 1], pairs_[2 * i] = id, body
      ids[n + i], sources[n + i] = id, 'k'
    end
    all('HSET', MESSAGES, pairs_)
  end
  if #oversized > 0 then
    local before = next_numbers(#oversized, seen_number)
    for i, body in ipairs(oversized) do
      local id = string.format('%016.0f', before + i)
      redis.call('HSET', MESSAGES, id, body)
      redis.call('ZADD', DEAD, now, id)
      put_off(id, nil, 0, 0, string.format('larger than 64 MiB and than --in-flight-bytes: %d bytes', #body))
      buried[2 * i - 1], buried[2 * i] = id, tostring(#body)
    end
  end
  if #ids > 0 then
    local owned = {}
    for i, id in ipairs(ids) do owned[2 * i - 1], owned[2 * i] = me, id end
    all('ZADD', INFLIGHT, owned)
  end
  if #ids > 0 or again then
    local record = {call}
    for i, id in ipairs(ids) do record[i + 1] = id .. sources[i] end
    redis.call('HSET', CALLS, me, table.concat(record, ' '))
  end
  if #moved_lanes > 0 then all('ZADD', LANES, moved_lanes) end
  for _, one in ipairs(no_ids) do redis.call('ZADD', RETRY, NEVER, one) end
  all('ZREM', RETRY, retried)
  all('ZREM', RETRY, strays)
  all('ZREM', WAITING, left)
  for _, origin in ipairs(emptied) do close_if_empty(origin) end
  if from_k > 0 then redis.call('LTRIM', K, from_k, -1) end
end

local due_in = -1
local function not_later(score) score = math.max(0, math.min(score - now, NEVER)) if due_in < 0 or score < due_in then due_in = score end end
-- What is due and has no place now is looked for again in a moment: a place may be free by then.
if passed_over or lanes_left then not_later(now + 20) end
local next_retry = redis.call('ZRANGEBYSCORE', RETRY, passed_over and '(' .. string.format('%.0f', now) or '-inf', '+inf',
  'WITHSCORES', 'LIMIT', 0, 1)
if next_retry[2] then not_later(tonumber(next_retry[2])) end
local next_lane = redis.call('ZRANGEBYSCORE', LANES, '(' .. string.format('%.0f', now), '(' .. whole(NEVER),
  'WITHSCORES', 'LIMIT', 0, 1)
if next_lane[2] then not_later(tonumber(next_lane[2])) end
return {'ok', now, due_in, redis.call('LLEN', K) > 0 and 1 or 0, emptied, failures, messages, buried,
  string.format('%.0f', base), fresh, odd,
  string.format('%.0f', #fresh > 0 and base + #fresh or last_number()), orders_news()}
