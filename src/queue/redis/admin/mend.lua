-- mend(key's name, member) -> 1 if it was odd still, and is mended: moved aside (to the last key, a HASH by the key's name
-- and the member), made due, or put right; else 0.
local name, member, aside = ARGV[1], ARGV[2], KEYS[14]
local key = assert(key_of[name])
check_types()
redis.call('HLEN', aside)
local value
if name == 'id' then value = redis.call('GET', key)
elseif is_hash[name] then value = redis.call('HGET', key, member)
else value = redis.call('ZSCORE', key, member) end
if not value then return 0 end
local wrong, remedy = judge(name, member, value)
if not wrong then return 0 end
open_for_writing()
if remedy == 'due' then
  redis.call('ZADD', RETRY, now, member)
  if name == 'inflight' then redis.call('ZREM', INFLIGHT, member) end
elseif remedy == 'right' then
  if name == 'waiting' then
    local origin = string.sub(member, 1, -18)
    redis.call('ZADD', WAITING, 0, member)
    if not redis.call('ZSCORE', LANES, origin) then set_lane(due_at(now), origin) end
  elseif name == 'agents' then redis.call('ZADD', AGENTS, lease_of(value), member)
  else redis.call('ZADD', key, now, member) end
else
  -- What was put there before stays.
  local field, n = name .. ' ' .. member, 1
  while redis.call('HEXISTS', aside, field) == 1 and redis.call('HGET', aside, field) ~= value do
    n = n + 1
    field = name .. ' ' .. member .. ' (' .. n .. ')'
  end
  redis.call('HSET', aside, field, value)
  if name == 'id' then redis.call('SET', ID, string.format('%.0f', now_us))
  elseif is_hash[name] then redis.call('HDEL', key, member)
  else redis.call('ZREM', key, member) end
end
return 1
