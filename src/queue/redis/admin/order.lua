-- order(pause, resume or try, dry, most, origin...) -> {'full'}, or {'ok', {state before, its time or '', messages, failures}...}
-- What an operator wants of endpoints; if it is dry, nothing is done. States: paused (time: the number of that order),
-- probed, down (until), due, up, new; none: nothing waits for it.
local what, dry, most = ARGV[1], ARGV[2] == '1', assert(tonumber(ARGV[3]))
assert(what == 'pause' or what == 'resume' or what == 'try')
check_types()
local number = tonumber(redis.call('HGET', CALLS, 'ordered') or '0')
if not number or number < 0 or number >= HIGHEST then number = 0 end
number = math.max(now_us, number + 1)

local at, list, n_paused = {}, {}, 0
for origin, kind, given in string.gmatch(redis.call('HGET', CALLS, 'orders') or '', '\n([^ \n]+) ([pt])(%d+)') do
  -- Every agent has heard within a second that it is to be tried.
  if kind == 'p' or tonumber(given) > number - 60000000 then
    list[#list + 1] = origin
    at[origin] = kind .. given
    if kind == 'p' then n_paused = n_paused + 1 end
  end
end
local function order(origin, text)
  if not at[origin] then list[#list + 1] = origin end
  at[origin] = text
end

local out, times, changed = {'ok'}, {}, false
for i = 4, #ARGV do
  local origin = ARGV[i]
  local due = tonumber(redis.call('ZSCORE', LANES, origin) or nil)
  local state, time = 'none', ''
  local paused = at[origin] and string.match(at[origin], '^p(%d+)$')
  if paused then state, time = 'paused', paused
  elseif due and is_probed(due) then state, time = 'probed', whole(due)
  elseif due and due > now then state, time = 'down', whole(due)
  elseif due then state = due > 0 and 'due' or due == 0 and 'up' or 'new' end
  out[#out + 1] = {state, time,
    redis.call('ZLEXCOUNT', WAITING, '[' .. origin .. '\n', '[' .. origin .. '\n:'),
    string.match(redis.call('HGET', FAILURES, origin) or '', '^%d+') or '0'}
  if what == 'pause' and not paused then
    order(origin, string.format('p%.0f', number))
    n_paused, changed = n_paused + 1, true
    if due then times[#times + 1] = NEVER times[#times + 1] = origin end
  elseif what == 'resume' and paused then
    at[origin], n_paused, changed = false, n_paused - 1, true
    if due then times[#times + 1] = due_at(now) times[#times + 1] = origin end
  elseif what == 'try' and (state == 'down' or state == 'due' or state == 'none') then
    order(origin, string.format('t%.0f', number))
    changed = true
    if state == 'down' then times[#times + 1] = due_at(now) times[#times + 1] = origin end
  end
end
if n_paused > most then return {'full'} end
if dry or not changed then return out end
local lines = {''}
for _, kind in ipairs({'p', 't'}) do
  for _, origin in ipairs(list) do
    -- Of what is to be tried, no more than as many again: the lane of any other is due all the same.
    if at[origin] and string.sub(at[origin], 1, 1) == kind and #lines <= 2 * most then
      lines[#lines + 1] = origin .. ' ' .. at[origin]
    end
  end
end
open_for_writing()
redis.call('HSET', CALLS, 'orders', table.concat(lines, '\n'), 'ordered', string.format('%.0f', number))
all('ZADD', LANES, times)
return out
