-- claim(me, call, messages, bytes, returning, probes, of failed lanes, probe ms, suspect, ordered, again,
--       largest, popped?, popped, highest number seen, {origin, n}...)
--   -> {state, now, due in (-1: nothing is), more, emptied origins, failures of probed lanes, messages, oversized,
--       the id before the first new one, new messages}
-- Takes due retries, messages of lanes that the agent wants, one each of other
-- lanes that may be tried, then from the left of K, until a bound. Messages come
-- flat as id, bytes, history, recovered, source: k (queue, given again), o (waiting, its lane
-- is open), p (waiting, a probe), r (retry).
local me, call = ARGV[1], ARGV[2]
local max_messages, max_bytes, max_returning = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local probes, failed_probes, probe_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local suspect, ordered, again = ARGV[9] == '1', ARGV[10] == '1', ARGV[11] == '1'
local largest = tonumber(ARGV[12])
local popped = ARGV[13] == '1' and ARGV[14]
local seen_number = tonumber(ARGV[15])
local WANTS = 16
assert(seen_number and largest and max_messages and max_bytes and max_returning and probes and failed_probes and probe_ms and tonumber(call))
for i = WANTS, #ARGV, 2 do assert(tonumber(ARGV[i + 1])) end

if not redis.call('ZSCORE', AGENTS, me) then return {'gone'} end
local messages, ids, sources, bytes = {}, {}, {}, 0
local function give(id, body, history, recovered, source)
  local n = #messages
  messages[n + 1], messages[n + 2], messages[n + 3], messages[n + 4], messages[n + 5] =
    id, body, history or '', recovered or '0', source
  ids[#ids + 1], sources[#sources + 1] = id, source
  bytes = bytes + #body
end

-- The answer to this very call was lost: the same batch again.
local last = redis.call('HGET', CALLS, me)
if last and string.match(last, '^%d+') == call then
  for id, source in string.gmatch(last, ' (%d+)(%a)') do
    local owner = redis.call('ZSCORE', INFLIGHT, id)
    local body = owner and tonumber(owner) == tonumber(me) and redis.call('HGET', MESSAGES, id)
    if body then give(id, body, redis.call('HGET', HISTORY, id), redis.call('HGET', RECOVERED, id), source) end
  end
  return {'again', now, 0, 1, {}, {}, messages, {}, '0', {}}
end

-- A call that was overtaken on a connection given up long ago must not claim for nobody.
if last and tonumber(string.match(last, '^%d+')) > tonumber(call) then return {'old'} end

-- Strict order: one agent at a time, the oldest, and only once nobody else has anything in flight.
local function is_standby()
  for _, other in ipairs(redis.call('ZRANGE', AGENTS, 0, -1)) do
    if other < me then return true end
  end
  local low = redis.call('ZRANGE', INFLIGHT, 0, 0, 'WITHSCORES')
  local high = redis.call('ZREVRANGE', INFLIGHT, 0, 0, 'WITHSCORES')
  return low[2] and (tonumber(low[2]) ~= tonumber(me) or tonumber(high[2]) ~= tonumber(me))
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
local function is_suspect(recovered) return recovered and tonumber(recovered) >= 2 end

local n_queued = redis.call('LLEN', K) + (popped and 1 or 0)
if n_queued == 0 then max_returning = max_messages end
local returning_bytes = n_queued > 0 and max_bytes / 2 or max_bytes

-- Retries. In ordered mode all of them, due or not, and nothing beside them: they
-- are filed under their lanes before anything newer is attempted.
local retried, strays, suspects = {}, {}, {}
local max_retries = max_returning
if not ordered and redis.call('ZCARD', LANES) > 0 then max_retries = math.ceil(max_returning / 2) end
if ordered then max_retries = max_messages end
local seen, full = 0, false
while #retried < max_retries and bytes < returning_bytes and not full do
  local want = math.min(16, max_retries - #retried)
  local due = ordered and redis.call('ZRANGE', RETRY, seen, seen + want - 1)
    or redis.call('ZRANGEBYSCORE', RETRY, '-inf', now, 'LIMIT', seen, want)
  if #due == 0 then break end
  seen = seen + #due
  local bodies, histories = redis.call('HMGET', MESSAGES, unpack(due)), redis.call('HMGET', HISTORY, unpack(due))
  local counts = any_recovered and redis.call('HMGET', RECOVERED, unpack(due)) or {}
  for i, id in ipairs(due) do
    if bytes >= returning_bytes then full = true break end
    if not bodies[i] then strays[#strays + 1] = id
    elseif not ordered and is_suspect(counts[i]) and not suspect then suspects[#suspects + 1] = id
    else
      if not ordered and is_suspect(counts[i]) then suspect = false end
      retried[#retried + 1] = id
      give(id, bodies[i], histories[i], counts[i], 'r')
    end
  end
  if seen > 2000 then break end
end

-- Lanes: those that the agent wants, then others that may be tried.
local left, emptied, moved_lanes, probed, failures, n_probed = {}, {}, {}, {}, {}, 0
local function take_from(origin, n, source)
  local room = math.min(n, max_returning - #ids)
  if room <= 0 or bytes >= returning_bytes then return 0 end
  local members = waiting_of(origin, 0, room + 1)
  local taken = 0
  for i = 1, math.min(room, #members) do
    if bytes >= returning_bytes then break end
    local id = string.sub(members[i], -16)
    local recovered = any_recovered and redis.call('HGET', RECOVERED, id)
    if is_suspect(recovered) then
      if not suspect then break end
      suspect = false
    end
    local body = redis.call('HGET', MESSAGES, id)
    if body then give(id, body, redis.call('HGET', HISTORY, id), recovered, source) end
    left[#left + 1] = members[i]
    taken = taken + 1
  end
  if taken > 0 and taken == #members then
    emptied[#emptied + 1] = origin
  elseif source == 'p' then
    -- Nobody else tries it while this attempt is under way; a suspect that must wait is looked at again soon.
    moved_lanes[#moved_lanes + 1] = taken > 0 and probed_until(now + probe_ms) or due_at(now + 100)
    moved_lanes[#moved_lanes + 1] = origin
  end
  return taken
end
local function probe(origin)
  local failed = redis.call('HGET', FAILURES, origin)
  if take_from(origin, 1, 'p') > 0 then
    n_probed = n_probed + 1
    if failed then failures[#failures + 1] = origin failures[#failures + 1] = failed end
  end
end
local lanes_left = false
if not (ordered and #ids > 0) then
  local wanted = {}
  for i = WANTS, #ARGV, 2 do
    local origin = ARGV[i]
    wanted[origin] = true
    local due = redis.call('ZSCORE', LANES, origin)
    due = due and tonumber(due)
    if not due then emptied[#emptied + 1] = origin
    elseif due <= 0 then take_from(origin, tonumber(ARGV[i + 1]), 'o')
    elseif due <= now and n_probed < probes and failed_probes > 0 then failed_probes = failed_probes - 1 probe(origin) end
  end
  if probes > 0 then
    local due = redis.call('ZRANGEBYSCORE', LANES, '-inf', now, 'WITHSCORES', 'LIMIT', 0, probes + (#ARGV - WANTS + 1) / 2)
    for i = 1, #due, 2 do
      if not wanted[due[i]] then
        local since = tonumber(due[i + 1])
        -- Those that never failed come first, so what follows has failed too.
        if since > 0 and failed_probes <= 0 then break end
        if n_probed >= probes or #ids >= max_returning or bytes >= returning_bytes then lanes_left = true break end
        if since > 0 then failed_probes = failed_probes - 1 end
        if since == 0 then
          if take_from(due[i], 1, 'o') > 0 then n_probed = n_probed + 1 end
        else probe(due[i]) end
      end
    end
  end
end

-- From the left of K, in growing steps: the size of what comes is not known before.
-- One too large for an agent to hold is dead at once: it would be in the way of every claim.
local fresh, oversized, from_k = {}, {}, 0
local function take(body)
  if #body > largest then oversized[#oversized + 1] = body
  else fresh[#fresh + 1] = body bytes = bytes + #body end
end
if popped then take(popped) end
if not (ordered and #retried > 0) then
  while #ids + #fresh < max_messages and bytes < max_bytes and #oversized == 0 do
    -- Never many at once: a page is read whole, however large its messages turn out to be.
    local want = math.min(math.max(1, from_k), 16, max_messages - #ids - #fresh)
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
if #ids + #fresh + #oversized + #strays + #suspects + #moved_lanes + #left > 0 or again then
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
  if #suspects > 0 then
    local later = {}
    for i, id in ipairs(suspects) do later[2 * i - 1], later[2 * i] = now + 100, id end
    all('ZADD', RETRY, later)
  end
  all('ZREM', RETRY, retried)
  all('ZREM', RETRY, strays)
  all('ZREM', WAITING, left)
  for _, origin in ipairs(emptied) do close_if_empty(origin) end
  if from_k > 0 then redis.call('LTRIM', K, from_k, -1) end
end

local due_in = -1
local function not_later(score) score = math.max(0, score - now) if due_in < 0 or score < due_in then due_in = score end end
local next_retry = redis.call('ZRANGE', RETRY, 0, 0, 'WITHSCORES')
if next_retry[2] then not_later(tonumber(next_retry[2])) end
if lanes_left then due_in = 0 end
local next_lane = redis.call('ZRANGEBYSCORE', LANES, '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if next_lane[2] then not_later(tonumber(next_lane[2])) end
return {'ok', now, due_in, redis.call('LLEN', K) > 0 and 1 or 0, emptied, failures, messages, buried,
  string.format('%.0f', base), fresh}
